"""Stage code, of projects that the installed package runs: a hash for each stage of the code that decides its result.

The stages depend on these, so that an upgrade makes stale exactly what it changed.
"""

import argparse
from pathlib import Path

import yaml

from pipelines.core.code_closure import stage_hash
from pipelines.core.command import run_command
from pipelines.core.files import replacing

STAGES = ("ingest", "prepare", "pages", "search", "train", "export", "evaluate", "register")


def main() -> None:
    parser = argparse.ArgumentParser(prog="unetpp stage code", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="YAML file of the hashes")
    out = parser.parse_args().out
    with replacing(out) as partial:
        partial.write_text(yaml.safe_dump({stage: stage_hash(stage)[:16] for stage in STAGES}, sort_keys=False))


if __name__ == "__main__":
    run_command(main)
