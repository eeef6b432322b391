"""A registered version as a stranger gets it: loaded by its URI in a process of its own, and compared.

    MLFLOW_TRACKING_URI=... python -m pipelines.registry.read_back --name NAME --expected expected.npz 1=7 2=8

is that process. It prints, as its last line, JSON of the depths that failed, with the reasons.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipelines.core.checksums import SUMS, check_seal
from pipelines.core.temporary_folders import scratch
from pipelines.registry import mlflow_store, model_versions
from unetpp.engines.engine import ENGINES, Engine
from unetpp.engines.family import find_family, open_engine
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.inference.predictor import Predictor
from unetpp.models.model_file import Trained, load_model

TOLERANCE = 1e-5
EXPORTED_TOLERANCE = 1e-3  # of an exported file in fp32, on images of noise
SIZES = ((33, 57), (64, 48), (130, 71))  # H x W of the images that a version is compared with its network on


def check_in_clean_process(name: str, versions: dict[int, str], trained: Trained) -> dict[int, str]:
    """Load versions in one new process, by their URIs, and compare what they predict with the network's own.

    All ways in are tried: `unetpp.load`, the pyfunc that MLflow serves, which may not unpickle anything, and, where the
    version carries exports, the first of its engines in fp32 that is installed.

    Args:
        versions: version by depth.
        trained: the network that they were made from.

    Returns:
        for each depth that failed, why.

    Raises:
        UserError: the process itself did not end well.
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
            # The address may hold a password, and `ps` shows arguments.
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
        # As `tracking.explained` words it: the stage tries again what may pass.
        kind = mlflow_store.StoreLostError if "cannot be reached" in said else UserError
        raise kind(
            f"{name}: a new process could not load the versions {', '.join(versions.values())} "
            f"(exit code {done.returncode}):\n{said}\nNo alias was moved; rerun the command to try again"
        )
    return {int(depth): reason for depth, reason in json.loads(done.stdout.splitlines()[-1]).items()}


def check_evidence(name: str, version: str, expected: str) -> str | None:
    """What is wrong with the evidence of a version, read back from the store; None where it is whole.

    Args:
        expected: sha256 of its SHA256SUMS, from what was uploaded.
    """
    with scratch() as parent:
        folder = mlflow_store.download(name, version, "evidence", parent)
        if folder is None or not (folder / SUMS).is_file():
            return f"lacks evidence/{SUMS}"
        if sha256(folder / SUMS) != expected:
            return f"is damaged: the bytes of evidence/{SUMS} are not those that were uploaded"
        try:
            check_seal(folder, needed=())
        except UserError as error:
            return "is damaged: " + str(error).replace(f"{folder}/", "evidence/")
        return None


def open_exported(folder: Path, depth: int) -> Engine | None:
    """An engine of a version's exports in fp32; None where it has none that is installed."""
    family = find_family(folder)
    names = [name for name in family.engines(depth) if ENGINES[name].format and ENGINES[name].precision == "fp32"]
    return open_engine(family, depth, names[0], device="cpu") if names else None


def differing(
    loaded: Trained, served, expected: dict[str, np.ndarray], depth: int, exported: Engine | None = None
) -> str:
    """Why a version is not the network that answered `expected` (see `check_in_clean_process`); "" where it is."""
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
                return f"by {way} gives shape {found.shape} where its network gives {answer.shape}"
            tolerance = EXPORTED_TOLERANCE if exported is not None and way == exported.name else TOLERANCE
            if not np.allclose(found, answer, atol=tolerance, rtol=0):
                return f"by {way} differs from its network by up to {np.abs(found - answer).max():.2g}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Load registered versions and compare their predictions.")
    parser.add_argument("--name", required=True, help="of the registered model")
    parser.add_argument("--expected", type=Path, required=True, help="images, and what the network makes of them")
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
                    model_versions.fetch_files(arguments.name, version, folder)
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
