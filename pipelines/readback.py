"""A registered version as a stranger would get it: its bytes, and what it predicts in a process of its own.

    MLFLOW_TRACKING_URI=... python -m pipelines.readback FOLDER NAME 1 2 3 ...

writes what the versions of NAME predict to FOLDER. It is a process, so that nothing of the one that registered
them helps: no module, no cache, no working network that is already in memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines import evidence, registry, tracking
from pipelines.files import sha256
from unetpp.errors import UserError
from unetpp.inference import Segmenter, Trained

TOLERANCE = 1e-5
# Images and pixels of the batches: sizes that no export saw, one of them with sides that no pool divides.
SIZES = ((1, 33, 57), (3, 64, 48))


def make_images(in_channels: int) -> list[Tensor]:
    """The batches (N, in_channels, H, W) that every version has to predict; the same at every call."""
    random = torch.Generator().manual_seed(0)
    return [torch.rand((number, in_channels, *size), generator=random) for number, *size in SIZES]


def check_in_clean_process(name: str, versions: dict[int, str], trained: Trained) -> dict[int, str]:
    """Load versions (by depth) in a new process, and compare what they predict with the network's own.

    Returns:
        for each depth that failed, why.

    Raises:
        UserError: the process itself failed; with the last thing that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.readback", folder, name, *versions.values()],
            # The address by the environment: it may hold a password, and `ps` shows arguments.
            env=os.environ | {"MLFLOW_TRACKING_URI": tracking.mlflow.get_tracking_uri()},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1][:500]
            lost = "cannot be reached" in said  # as `tracking.explained` words it
            kind = tracking.StoreLostError if lost else UserError
            raise kind(f"{name}: a new process cannot load the versions {', '.join(versions.values())}: {said}")
        reasons = {}
        for depth, version in versions.items():
            with np.load(Path(folder) / f"{version}.npz") as arrays:
                found = [arrays[key] for key in arrays.files]
            if reason := difference(found, trained.segmenter(depth)):
                reasons[depth] = reason
        return reasons


def difference(found: list[np.ndarray], segmenter: Segmenter) -> str | None:
    """Why predictions for `make_images` are not the segmenter's; None where they are."""
    for image, probs in zip(make_images(segmenter.network.in_channels), found, strict=True):
        with torch.inference_mode():
            expected = segmenter(image).numpy()
        if probs.shape != expected.shape:
            return f"gives shape {probs.shape} where its network gives {expected.shape}"
        if not np.allclose(probs, expected, atol=TOLERANCE, rtol=0):
            return f"differs from its network by up to {np.abs(probs - expected).max():.2g}"
    return None


def check_evidence(name: str, version: str, expected: str) -> str | None:
    """What is wrong with the evidence of a version, read back from the store; None where it is whole.

    Args:
        expected: sha256 of its SHA256SUMS, from what was uploaded.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = tracking.download(name, version, "evidence", Path(parent))
        if folder is None or not (folder / evidence.SUMS).is_file():
            return f"lacks evidence/{evidence.SUMS}"
        if sha256(folder / evidence.SUMS) != expected:
            return f"is damaged: the bytes of evidence/{evidence.SUMS} are not those that were uploaded"
        wrong = evidence.check_sums(folder)
        return f"is damaged: evidence: {wrong}" if wrong else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("versions", nargs="+")
    arguments = parser.parse_args()
    uri = tracking.tracking_uri()
    with tracking.explained(uri), torch.inference_mode():
        client = tracking.connect(uri)
        for version in arguments.versions:
            in_channels = int(client.get_model_version(arguments.name, version).tags["in_channels"])
            network = registry.load_version(arguments.name, version)
            found = [network(image).numpy() for image in make_images(in_channels)]
            np.savez(arguments.folder / f"{version}.npz", *found)


if __name__ == "__main__":
    from pipelines.stage import run_command

    run_command(main)
