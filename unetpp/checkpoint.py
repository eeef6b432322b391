"""Checkpoints of a training that are whole or refused: a state file beside a manifest of its size and hash."""

import hashlib
import json
from pathlib import Path

import torch

STATE, MANIFEST = "state.pt", "manifest.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint whose bytes are not those that were written."""


def _seal(file: Path) -> dict:
    with open(file, "rb") as opened:
        return {
            "file": file.name,
            "size": file.stat().st_size,
            "sha256": hashlib.file_digest(opened, "sha256").hexdigest(),
        }


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write `state` (tensors and plain values) and its manifest into an existing folder, the manifest last."""
    torch.save(state, folder / STATE)
    (folder / MANIFEST).write_text(json.dumps({"epoch": state["epoch"]} | _seal(folder / STATE)))


def load_checkpoint(folder: Path) -> dict:
    """Verify and read what `save_checkpoint` wrote; runs no code of the file's author.

    Raises:
        DamagedCheckpointError: a file is missing, shorter, or has other bytes.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest.pop("epoch")
        found = _seal(folder / STATE)
    except (OSError, ValueError, KeyError) as error:
        raise DamagedCheckpointError(f"{folder}: torn checkpoint ({error})") from None
    if found != manifest:
        raise DamagedCheckpointError(f"{folder}: expected {manifest}, found {found}")
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def newest_checkpoint(run: Path) -> tuple[dict, list[str]]:
    """The state of the furthest whole checkpoint among a run's `checkpoint_*` folders.

    Returns:
        the state, empty when there is none; and a line for each damaged one that was passed over.
    """

    def epoch(folder: Path) -> int:
        try:
            return int(json.loads((folder / MANIFEST).read_text())["epoch"])
        except (OSError, ValueError, KeyError, TypeError):
            return -1  # torn before its manifest was written

    passed_over = []
    for folder in sorted(run.glob("checkpoint_*"), key=epoch, reverse=True):
        try:
            return load_checkpoint(folder), passed_over
        except DamagedCheckpointError as error:
            passed_over.append(str(error))
    return {}, passed_over
