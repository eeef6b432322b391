"""The new process of `registry.check_in_clean_process`: loads versions as a stranger would, and compares.

    MLFLOW_TRACKING_URI=... python -m pipelines.reload --name NAME --expected expected.npz 1=7 2=8

Prints, as its last line, JSON of the depths that failed, with the reasons.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from pipelines import registry, tracking
from unetpp.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description="Load registered versions and compare their predictions.")
    parser.add_argument("--name", required=True, help="of the registered model")
    parser.add_argument("--expected", type=Path, required=True, help="images, and what the network makes of them")
    parser.add_argument("versions", nargs="+", metavar="DEPTH=VERSION")
    arguments = parser.parse_args()
    uri = os.environ["MLFLOW_TRACKING_URI"]
    reasons = {}
    with tracking.explained(uri), np.load(arguments.expected, allow_pickle=False) as file:
        tracking.connect(uri)
        expected = dict(file)
        for text in arguments.versions:
            depth, version = text.split("=")
            try:
                loaded = registry.fetch_version(arguments.name, version)
                served = registry.load_served(arguments.name, version)
                reason = registry.differing(loaded, served, expected, int(depth))
            except UserError as error:
                reason = str(error)
            if reason:
                reasons[depth] = reason
    print(json.dumps(reasons))


if __name__ == "__main__":
    from pipelines.stage import run_command

    run_command(main)
