"""Checkpoints of a training that are whole or refused: a state file beside a manifest of its size and hash."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import torch

STATE, MANIFEST = "state.pt", "manifest.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint whose bytes are not those that were written."""


def _seal(content: bytes | memoryview) -> dict:
    return {"file": STATE, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def to_bytes(state: dict) -> tuple[memoryview, bytes]:
    """A state (tensors and plain values) as what its two files hold: itself, and its manifest."""
    file = io.BytesIO()
    torch.save(state, file)
    content = file.getbuffer()
    place = {"epoch": state["epoch"], "step": state.get("step", 0)}
    return content, json.dumps(place | _seal(content)).encode()


def from_bytes(content: bytes | None, manifest: bytes | None, name: str) -> dict:
    """The state of two files, None where one is missing; runs no code of their author.

    Raises:
        DamagedCheckpointError: a file is missing, shorter, or has other bytes. `name` is what it calls the checkpoint.
    """
    try:
        expected = json.loads(manifest or b"")
        del expected["epoch"], expected["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{name}: torn checkpoint ({error})") from None
    if content is None:
        raise DamagedCheckpointError(f"{name}: torn checkpoint (no {STATE})")
    if (found := _seal(content)) != expected:
        raise DamagedCheckpointError(f"{name}: expected {expected}, found {found}")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def place_of(manifest: bytes | None) -> tuple[int, int]:
    """How far a checkpoint is, by its manifest: epochs done, and steps of the next; (-1, 0) of one without."""
    try:
        found = json.loads(manifest or b"")
        return int(found["epoch"]), int(found["step"])
    except (ValueError, KeyError, TypeError):
        return -1, 0  # torn before its manifest was written


def name_of(state: dict) -> str:
    """The folder of a state's checkpoint. By such names they stand in the order in which they were made."""
    return f"checkpoint_{state['epoch']:06}_{state.get('step', 0):08}"


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write `state` (tensors and plain values) and its manifest into an existing folder, the manifest last.

    Raises:
        OSError: the disk is full, as its own error and not as one of torch's.
    """
    content, manifest = to_bytes(state)
    with open(folder / STATE, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a manifest never stands beside bytes that a power cut takes
    (folder / MANIFEST).write_bytes(manifest)


def add_checkpoint(run: Path, state: dict, keep: int = 2) -> Path:
    """Write `state` as the newest checkpoint of a run, by rename, and then remove all but the newest `keep`.

    Further ones are removed too: who made this state went on from an earlier one, since they were damaged.

    Raises:
        OSError: what stood before is as it was.
    """
    run.mkdir(parents=True, exist_ok=True)
    target = run / name_of(state)
    partial = run / f".{target.name}.partial"
    for killed in run.glob(".checkpoint_*.partial"):
        shutil.rmtree(killed, ignore_errors=True)
    try:
        partial.mkdir()
        save_checkpoint(partial, state)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one that was passed over
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    older = [folder for folder in sorted(run.glob("checkpoint_*"), key=_place) if _place(folder) < _place(target)]
    kept = {target, *older[max(0, len(older) - max(1, keep) + 1) :]}
    for folder in run.glob("checkpoint_*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
    return target


def load_checkpoint(folder: Path) -> dict:
    """Verify and read what `save_checkpoint` wrote; runs no code of the file's author.

    Raises:
        DamagedCheckpointError: a file is missing, shorter, or has other bytes.
    """
    return from_bytes(_read(folder / STATE), _read(folder / MANIFEST), str(folder))


def _place(folder: Path) -> tuple[int, int]:
    return place_of(_read(folder / MANIFEST))


def newest_checkpoint(run: Path) -> tuple[dict, list[str]]:
    """The state of the furthest whole checkpoint among a run's `checkpoint_*` folders.

    Returns:
        the state, empty when there is none; and a line for each damaged one.
    """
    passed_over = []
    folders = sorted(run.glob("checkpoint_*"), key=_place, reverse=True)
    passed_over += [f"{folder}: torn checkpoint (no whole manifest)" for folder in folders if _place(folder)[0] < 0]
    for folder in folders:
        if _place(folder)[0] < 0:
            break
        try:
            return load_checkpoint(folder), passed_over
        except DamagedCheckpointError as error:
            passed_over.append(str(error))
    return {}, passed_over
