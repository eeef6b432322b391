"""Files that are whole or absent: writing by rename, and the disk that is full."""

import errno
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from unetpp.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# As libraries tell it that lose the number: Ray of its workers, SQLite, torch.
SAYS_FULL = ("No space left on device", "Disk quota exceeded", "File too large", "database or disk is full")


def full_disk(error: BaseException, place: str | Path) -> UserError | None:
    """What to say where a full disk is behind an error; None where it is not.

    Args:
        place: what was written, where the error names nothing.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, UserError):
        number = seen.errno if isinstance(seen, OSError) else None
        if number in FULL or any(sign in str(seen) for sign in SAYS_FULL):
            named = seen.filename2 or seen.filename if isinstance(seen, OSError) and number in FULL else None
            place = os.fsdecode(named) if isinstance(named, str | bytes) else str(place)
            place = "/dev/shm" if "/torch_" in str(seen) else place  # of the processes that make batches
            facts = [str(seen.strerror)] if isinstance(seen, OSError) and number in FULL else []
            facts += [] if "://" in place else [f"{_free(place)} MiB free"]
            detail = f" ({'; '.join(facts)})" if facts else ""
            return UserError(
                f"{place}: the disk or quota is full, or the file too large for it{detail}; free some space and rerun "
                "the command"
            )
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def disk_errors(place: str | Path) -> Iterator[None]:
    """A full disk, in the block, is a `UserError` that names `place` and what is free there, by then and not later."""
    try:
        yield
    except Exception as error:
        if told := full_disk(error, place):
            raise told from None
        raise


def telling_full_disk(written: Callable[[str | Path], AbstractContextManager[Path]]):
    """For what yields a path to be written: `disk_errors` around its block, and around what it does itself."""

    @contextmanager
    @functools.wraps(written)
    def telling(path: str | Path) -> Iterator[Path]:
        with disk_errors(path), written(path) as partial, disk_errors(path):
            yield partial

    return telling


@telling_full_disk
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


def read_json(path: Path, stage: str) -> Any:
    """What a stage wrote as JSON.

    Raises:
        UserError: it cannot be read; the message names the stage to run.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro {stage}`, which writes it") from None


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


def check_space(folder: str | Path, num_bytes: int, stage: str = "") -> None:
    """Refuse to begin what cannot fit; where a stage is named, what it needs is told.

    Raises:
        UserError: names the folder, what is needed and what is free.
    """
    needed, free = f"{num_bytes / 2**20:,.0f} MiB", f"{_free(folder):,} MiB"
    if stage:
        print(f"{stage}: about {needed} are needed in {folder}, {free} are free", flush=True)
    if num_bytes > shutil.disk_usage(_there(folder)).free:
        raise UserError(f"{folder}: {needed} are needed and {free} are free; free some space and rerun the command")


def _free(path: str | Path) -> int:
    return shutil.disk_usage(_there(path)).free // 2**20


def _there(path: str | Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(one for one in (Path(path).absolute(), *Path(path).absolute().parents) if one.exists())
