"""Files that are whole or absent: writing by rename, and the disk that is full."""

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unetpp.errors import UserError
from unetpp.files import check_keys, read_json, read_text


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file or a folder; on success it takes `path`'s place.

    An error or an interrupt in between leaves what stood at `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    _remove(partial)
    try:
        yield partial
        if path.is_dir():
            _remove(path)
        os.replace(partial, path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


@contextmanager
def disk_errors(folder: str | Path) -> Iterator[None]:
    """A full disk, in the block, is a `UserError` that names `folder` and what is free there.

    To be wrapped closely around what writes, inside of what explains the errors of reading.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{folder}: the disk or quota is full, or the file too large for it ({error.strerror}; {_free(folder)} "
            "MiB free); free some space and rerun the command"
        ) from None


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock that a file stands for; it ends with the process that holds it.

    Raises:
        BlockingIOError: another process holds it, and `wait` is false.
    """
    import fcntl  # late: Windows, where `unetpp predict` runs, has none

    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            try:
                is_named = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                is_named = False
            if is_named:  # else somebody has cleaned up meanwhile
                yield
                return


def check_space(folder: str | Path, num_bytes: int) -> None:
    """Refuse to begin what cannot fit.

    Raises:
        UserError: names the folder, what is needed and what is free.
    """
    if num_bytes > shutil.disk_usage(folder).free:
        raise UserError(
            f"{folder}: {num_bytes / 2**20:.0f} MiB are needed and {_free(folder)} MiB are free; free some space and "
            "rerun the command"
        )


def _free(folder: str | Path) -> int:
    return shutil.disk_usage(folder).free // 2**20
