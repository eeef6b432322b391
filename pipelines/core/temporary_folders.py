"""Temporary folders and lock files, which end with the process that holds them, however that ends."""

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipelines.core.full_disk import disk_errors

try:
    import fcntl
except ImportError:  # on Windows, where `unetpp predict` runs
    fcntl = None

LOCK = ".unetpp-lock"  # in a temporary folder: held for as long as its process lives


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A temporary folder for the block, after removing those that killed processes left behind."""
    parent = Path(parent or tempfile.gettempdir())
    sweep(parent, {"unetpp-tmp-"})
    with held_folder(parent, "unetpp-tmp-") as folder:
        (folder / "in").mkdir()
        yield folder / "in"


def kept_folder() -> Path:
    """A new temporary folder that outlives this process; earlier ones are removed once they are a day old."""
    parent = Path(tempfile.gettempdir())
    sweep(parent, {"unetpp-kept-"}, hours=24)
    folder = Path(tempfile.mkdtemp(prefix="unetpp-kept-", dir=parent))
    (folder / LOCK).touch()
    (folder / "in").mkdir()
    return folder / "in"


@contextmanager
def held_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder with a lock in it, which ends with this process however that ends.

    Not with its number: another process may have got that since, and one in another container or on another machine
    of the same disk is not seen here.
    """
    while True:
        with disk_errors(parent):
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with ExitStack() as stack:
            try:
                if fcntl is not None:
                    stack.enter_context(locked(folder / LOCK))
            except FileNotFoundError:
                continue  # another process has just swept it
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # a disk without locks
                    shutil.rmtree(folder)
                    raise
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # what another process still writes goes with the next run
            return


def sweep(parent: Path, prefixes: set[str], hours: float = 0) -> None:
    """Remove the temporary folders of these prefixes whose processes have ended."""
    if not parent.is_dir() or fcntl is None:
        return
    for path in parent.iterdir():
        begins, dash, ends = path.name.rpartition("-")
        if begins + dash not in prefixes or not path.is_dir():
            continue
        with suppress(OSError):  # it is held, or another user's
            if (path / LOCK).exists():
                if path.stat().st_mtime <= time.time() - 3600 * hours:
                    with locked(path / LOCK, wait=False):
                        shutil.rmtree(path)
            elif ends.isdecimal():  # process id, from a version without locks
                try:
                    os.kill(int(ends), 0)
                except ProcessLookupError:
                    shutil.rmtree(path)


def prefix(name: str) -> str:
    """How the temporary folders beside an output begin; a name has 255 bytes at most."""
    short = name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()[:40]
    return f".{short}.partial-"


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock file; the lock ends with the process that holds it.

    Raises:
        BlockingIOError: another process holds it, and `wait` is false.
    """
    assert fcntl is not None
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            try:
                is_named = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                is_named = False
            if is_named:  # else it was removed meanwhile
                yield
                return
