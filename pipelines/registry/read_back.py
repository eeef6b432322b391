"""Verify a registered version as any user gets it: load it by its URI in a new process, and compare its predictions.

    MLFLOW_TRACKING_URI=... python -m pipelines.registry.read_back --name NAME --expected expected.npz 1=7 2=8

is that process. Its last line of output is JSON: the depths that failed, with the reasons.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipelines.core.checksums import SUMS, check_seal
from pipelines.core.files import scratch
from pipelines.registry import mlflow_store, model_versions
from pipelines.registry.load import fetch_files
from unetpp.engines.engine import ENGINES, Engine
from unetpp.engines.family import find_family, open_engine
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.inference.predictor import Predictor
from unetpp.models.model_file import Trained, load_model

TOLERANCE = 1e-5
EXPORTED_TOLERANCE = 1e-3  # for an exported file in fp32, on images of noise
SIZES = ((33, 57), (64, 48), (130, 71))  # H x W of the images on which a version is compared with its network


def check_in_clean_process(name: str, versions: dict[int, str], trained: Trained) -> dict[int, str]:
    """Load versions by their URIs in one new process, and compare their predictions with those of the network.

    Every way to load is tried: `unetpp.load`; the pyfunc that MLflow serves, with unpickling forbidden; and, if the
    version carries exports, the first of its fp32 engines that is installed.

    Args:
        versions: version by depth.
        trained: the network from which they were made.

    Returns:
        the reason for each depth that failed.

    Raises:
        UserError: the process itself failed.
    """
    random = np.random.default_rng(0)
    shapes = [(*size, trained.network.in_channels) for size in SIZES]
    images = {f"image{i}": random.integers(0, 256, shape, np.uint8) for i, shape in enumerate(shapes)}
    answers = {
        f"L{depth}/{key}": Predictor(trained, depth).probs(image) for depth in versions for key, image in images.items()
    }
    with scratch() as folder:
        np.savez(folder / "expected.npz", allow_pickle=False, **images, **answers)
        code = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            # Not an argument: the address may contain a password, and `ps` shows arguments.
            "MLFLOW_TRACKING_URI": mlflow_store.mlflow.get_tracking_uri(),
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, code)),
        }
        command = [sys.executable, "-m", "pipelines.registry.read_back", f"--name={name}"]
        command += [f"--expected={folder}/expected.npz"]
        command += [f"{depth}={version}" for depth, version in versions.items()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        # The wording of `mlflow_store.explained`: the stage retries errors that may be gone next time.
        kind = mlflow_store.StoreLostError if "cannot be reached" in said else UserError
        raise kind(
            f"{name}: a new process could not load the versions {', '.join(versions.values())} "
            f"(exit code {done.returncode}):\n{said}\nNo alias was moved; rerun the command to try again"
        )
    return {int(depth): reason for depth, reason in json.loads(done.stdout.splitlines()[-1]).items()}


def check_evidence(name: str, version: str, expected: str) -> str | None:
    """What is wrong with the evidence of a version, read back from the store; None if it is intact.

    Args:
        expected: sha256 of the SHA256SUMS that was uploaded.
    """
    with scratch() as parent:
        folder = mlflow_store.download(name, version, "evidence", parent)
        if folder is None or not (folder / SUMS).is_file():
            return f"lacks evidence/{SUMS}"
        if sha256(folder / SUMS) != expected:
            return f"is damaged: evidence/{SUMS} is not the file that was uploaded"
        try:
            check_seal(folder, needed=())
        except UserError as error:
            return "is damaged: " + str(error).replace(f"{folder}/", "evidence/")
        return None


def open_exported(folder: Path, depth: int) -> Engine | None:
    """An fp32 engine of a version's exports; None if none is installed."""
    family = find_family(folder)
    names = [name for name in family.engines(depth) if ENGINES[name].format and ENGINES[name].precision == "fp32"]
    return open_engine(family, depth, names[0], device="cpu") if names else None


def differing(
    loaded: Trained, served, expected: dict[str, np.ndarray], depth: int, exported: Engine | None = None
) -> str:
    """How a version differs from the network that predicted `expected` (see `check_in_clean_process`); "" if equal."""
    predictor = Predictor(loaded)
    for key in (key for key in expected if key.startswith("image")):
        answer = expected[f"L{depth}/{key}"]
        ways = {
            "unetpp.load": predictor.probs(expected[key]),
            "the pyfunc": served.predict(expected[key], {"mode": "probabilities", "engine": "torch"}),
        }
        if exported is not None:
            ways[exported.name] = Predictor(exported).probs(expected[key])
        for way, found in ways.items():
            if found.shape != answer.shape:
                return f"by {way} predicts shape {found.shape}; its network predicts {answer.shape}"
            tolerance = EXPORTED_TOLERANCE if exported is not None and way == exported.name else TOLERANCE
            if not np.allclose(found, answer, atol=tolerance, rtol=0):
                return f"by {way} differs from its network by up to {np.abs(found - answer).max():.2g}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Load registered versions and compare their predictions.")
    parser.add_argument("--name", required=True, help="name of the registered model")
    parser.add_argument("--expected", type=Path, required=True, help="images, and the network's predictions of them")
    parser.add_argument("versions", nargs="+", metavar="DEPTH=VERSION")
    arguments = parser.parse_args()
    uri = os.environ["MLFLOW_TRACKING_URI"]
    reasons = {}
    with mlflow_store.explained(uri), np.load(arguments.expected, allow_pickle=False) as file:
        mlflow_store.connect(uri)
        expected = dict(file)
        for text in arguments.versions:
            depth, version = text.split("=")
            try:
                with scratch() as folder:
                    fetch_files(arguments.name, version, folder)
                    loaded, exported = load_model(folder), open_exported(folder, int(depth))
                    served = model_versions.load_served(arguments.name, version)
                    reason = differing(loaded, served, expected, int(depth), exported)
            except UserError as error:
                reason = str(error)
            if reason:
                reasons[depth] = reason
    print(json.dumps(reasons))


if __name__ == "__main__":
    from pipelines.core.command import run_command

    run_command(main)
