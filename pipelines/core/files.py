"""Files that are complete or absent."""

import json
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.core.full_disk import disk_errors, telling_full_disk
from pipelines.core.outputs import mark, not_ours
from pipelines.core.temporary_folders import held_folder, prefix, sweep
from unetpp.errors import UserError
from unetpp.files import check_keys, read_json, read_text

HOLDING = ".unetpp.partial-"  # how temporary folders for many files begin


@telling_full_disk
@contextmanager
def replacing(path: str | Path, held: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path next to `path` for a file or a folder; on success it replaces `path`.

    An error or an interrupt in between leaves what stood at `path` as it was. Files of a folder that are not the
    pipeline's own stay, beside the new ones.

    Args:
        held: of `holding`, for one of many files of a folder.
    """
    path = Path(path)
    if held is not None:
        partial = held / f"{threading.get_ident()}{path.suffix}"
        try:
            yield partial
            mark(partial, path)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return
    if path.is_dir():
        path = path.resolve()  # a link to another disk stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    with held_folder(path.parent, prefix(path.name)) as folder:
        partial = folder / path.name
        yield partial
        with disk_errors(path.parent):
            mark(partial, path)
            _take_place(partial, path)


@contextmanager
def holding(folder: Path) -> Iterator[Path]:
    """One temporary folder for many files of a folder, which a thread writes one after the other by `replacing`."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder, {HOLDING})
    with held_folder(folder, HOLDING) as held:
        yield held


def _take_place(partial: Path, path: Path) -> None:
    if not (partial.is_dir() and path.is_dir()):
        os.replace(partial, path)
    elif kept := {path / name for name in not_ours(path)}:
        for one in [each for each in path.rglob("*") if each.is_file() and each not in kept]:
            one.unlink()
        for one in [each for each in partial.rglob("*") if each.is_file()]:
            target = path / one.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(one, target)
    else:  # by two renames: to delete it first would take a while, in which a kill would leave neither
        os.replace(path, partial.with_name(".former"))
        os.replace(partial, path)


def write_json(path: str | Path, value) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_results(path: Path, stage: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """What a stage wrote as JSON.

    Raises:
        UserError: it cannot be read, or lacks a key; the message names the stage to run.
    """
    return read_json(path, f"run `dvc repro {stage}`, which writes it", needed)


def read_yaml(path: Path, fix: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """What a YAML file holds: names and values.

    Raises:
        UserError: it cannot be read, is none, or lacks a key; it ends with `fix`.
    """
    import yaml  # late: `unetpp predict` runs without it

    try:
        found = yaml.safe_load(read_text(path, fix))
    except (yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{path}: not YAML ({reason}); {fix}") from None
    return check_keys(found, path, fix, needed)
