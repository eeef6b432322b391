"""Lines that other processes of this machine append to a file, handed on as they come."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY_S = 0.25


def append(path: Path, line: str) -> None:
    """Add a line; short ones of several processes never mix."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@contextmanager
def feed(handle: Callable[[str], None]) -> Iterator[Path]:
    """Call `handle` with each line, in a thread, while the block runs; at its end all that was written was handled.

    Yields:
        the file to append to.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, done = Path(folder, "lines"), threading.Event()
        path.touch()
        thread = threading.Thread(target=_read, args=(path, handle, done), daemon=True)
        thread.start()
        try:
            yield path
        finally:
            done.set()
            thread.join()


def _read(path: Path, handle: Callable[[str], None], done: threading.Event) -> None:
    with path.open(encoding="utf-8") as file:
        part = ""
        while True:
            last = done.wait(EVERY_S)  # asked first: what was written before is read
            for line in file:
                part += line
                if part.endswith("\n"):
                    handle(part.removesuffix("\n"))
                    part = ""
            if last:
                return
