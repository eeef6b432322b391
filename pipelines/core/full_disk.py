"""A full disk, reported in one line whatever a library says, and where possible before any work."""

import errno
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pipelines import detail
from unetpp.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How libraries say it that lose the error number: Ray (of its workers), SQLite, torch.
SAYS_FULL = ("No space left on device", "Disk quota exceeded", "File too large", "database or disk is full")


def full_disk(error: BaseException, place: str | Path) -> UserError | None:
    """What to say if a full disk caused an error; None if it did not.

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
    """Turn a full disk in the block into a `UserError` that names `place` and the free space at that moment."""
    try:
        yield
    except Exception as error:
        if told := full_disk(error, place):
            raise told from None
        raise


def telling_full_disk(written: Callable[..., AbstractContextManager[Path]]):
    """Decorate a context that yields a path to write: `disk_errors` around its block and around its own work."""

    @contextmanager
    @functools.wraps(written)
    def telling(path: str | Path, *more: Path | None) -> Iterator[Path]:
        with disk_errors(path), written(path, *more) as partial, disk_errors(path):
            yield partial

    return telling


def check_space(folder: str | Path, num_bytes: int, stage: str = "") -> None:
    """Refuse to begin what cannot fit; where a stage is named, a verbose run tells what it needs.

    Raises:
        UserError: names the folder, what is needed and what is free.
    """
    folder = next(one for one in (Path(folder), *Path(folder).parents) if ".partial-" not in one.name)
    needed, free = f"{num_bytes / 2**20:,.0f}", f"{_free(folder):,}"
    if stage:
        detail(f"{stage}: about {needed} MiB are needed in {folder}, {free} MiB are free")
    if num_bytes > shutil.disk_usage(_there(folder)).free:
        raise UserError(
            f"{folder}: {needed} MiB are needed and {free} MiB are free; free some space and rerun the command"
        )


def _free(path: str | Path) -> int:
    return shutil.disk_usage(_there(path)).free // 2**20


def _there(path: str | Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(one for one in (Path(path).absolute(), *Path(path).absolute().parents) if one.exists())
