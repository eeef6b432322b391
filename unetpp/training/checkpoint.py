"""Checkpoints of a training run, complete or refused: a state file, and a manifest of its size and hash."""

import hashlib
import io
import json
import os
from pathlib import Path

import torch

from unetpp.errors import UserError, said
from unetpp.files import parse_json

STATE, MANIFEST = "state.pt", "manifest.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint that is incomplete or has other bytes than were written."""


def _seal(content: bytes | memoryview) -> dict:
    return {"file": STATE, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def to_bytes(state: dict) -> tuple[memoryview, bytes]:
    """The contents of the two files of a state (tensors and plain values): the state and its manifest."""
    file = io.BytesIO()
    torch.save(state, file)
    content = file.getbuffer()
    place = {"epoch": state["epoch"], "step": state.get("step", 0)}
    return content, json.dumps(place | _seal(content)).encode()


def from_bytes(content: bytes | None, manifest: bytes | None, name: str) -> dict:
    """The state in the contents of the two files (None if a file is missing); runs no code of their author.

    Args:
        name: how messages refer to the checkpoint.

    Raises:
        DamagedCheckpointError: a file is missing, is shorter, has other bytes, or contains more than tensors and plain
            values.
    """
    try:
        expected = parse_json(manifest or b"", MANIFEST, "it is skipped", ("epoch", "step"))
        del expected["epoch"], expected["step"]
    except UserError as error:
        raise DamagedCheckpointError(f"{name}: torn checkpoint ({error})") from None
    if content is None:
        raise DamagedCheckpointError(f"{name}: torn checkpoint (no {STATE})")
    if (found := _seal(content)) != expected:
        raise DamagedCheckpointError(f"{name}: expected {expected}, found {found}")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise DamagedCheckpointError(f"{name}: not a checkpoint of this project ({said(error)})") from None


def name_of(state: dict) -> str:
    """The name of the folder for a state's checkpoint. Sorted by name, checkpoints are in order of time."""
    return f"checkpoint_{state['epoch']:06}_{state.get('step', 0):08}"


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write `state` (tensors and plain values) and its manifest into an existing folder, the manifest last.

    Raises:
        OSError: the disk is full; torch's own writer would raise another error.
    """
    content, manifest = to_bytes(state)
    with open(folder / STATE, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # so that after a power cut no manifest describes bytes that were lost
    (folder / MANIFEST).write_bytes(manifest)


def load_checkpoint(folder: Path) -> dict:
    """Verify and read what `save_checkpoint` wrote; runs no code of the file's author.

    Raises:
        DamagedCheckpointError: a file is missing, is shorter, or has other bytes.
    """
    return from_bytes(_read(folder / STATE), _read(folder / MANIFEST), str(folder))
