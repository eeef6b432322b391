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


def _seal(file: Path) -> dict:
    with open(file, "rb") as opened:
        return {
            "file": file.name,
            "size": file.stat().st_size,
            "sha256": hashlib.file_digest(opened, "sha256").hexdigest(),
        }


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write `state` (tensors and plain values) and its manifest into an existing folder, the manifest last.

    Raises:
        OSError: the disk is full, as its own error and not as one of torch's.
    """
    content = io.BytesIO()
    torch.save(state, content)
    with open(folder / STATE, "wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # a manifest never stands beside bytes that a power cut takes
    place = {"epoch": state["epoch"], "step": state.get("step", 0)}
    (folder / MANIFEST).write_text(json.dumps(place | _seal(folder / STATE)))


def add_checkpoint(run: Path, state: dict, keep: int = 2) -> Path:
    """Write `state` as the newest checkpoint of a run, by rename, and then remove all but the newest `keep`.

    Raises:
        OSError: what stood before is as it was.
    """
    run.mkdir(parents=True, exist_ok=True)
    target = run / f"checkpoint_{state['epoch']:06}_{state.get('step', 0):08}"
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
    folders = sorted(run.glob("checkpoint_*"), key=_place)
    for folder in folders[: max(0, len(folders) - max(1, keep))]:
        if folder != target:
            shutil.rmtree(folder, ignore_errors=True)
    return target


def load_checkpoint(folder: Path) -> dict:
    """Verify and read what `save_checkpoint` wrote; runs no code of the file's author.

    Raises:
        DamagedCheckpointError: a file is missing, shorter, or has other bytes.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest["epoch"], manifest["step"]
        found = _seal(folder / STATE)
    except (OSError, ValueError, KeyError) as error:
        raise DamagedCheckpointError(f"{folder}: torn checkpoint ({error})") from None
    if found != manifest:
        raise DamagedCheckpointError(f"{folder}: expected {manifest}, found {found}")
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def _place(folder: Path) -> tuple[int, int]:
    """How far a checkpoint is: epochs done, and steps of the next."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return int(manifest["epoch"]), int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1, 0  # torn before its manifest was written


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
