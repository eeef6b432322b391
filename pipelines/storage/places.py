"""Storage that several processes or machines share: a folder, or a prefix in an S3-compatible store.

In both, a file is either complete or not visible, whoever writes it, and whenever the writer is killed.
"""

import hashlib
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.core.full_disk import disk_errors
from pipelines.core.sections.ingest import S3
from pipelines.storage.s3 import Store
from unetpp.errors import UserError

CHUNK = 2**20


class Place(ABC):
    """Files by relative name; it can be pickled for other processes. `location` is its address.

    Every method raises `UserError` if the storage cannot be read or written.
    """

    location: str
    ask_every_s: float = 0  # the interval for polling something that changes seldom

    @abstractmethod
    def name(self, name: str) -> str:
        """A file as the user knows it."""

    @abstractmethod
    def list(self) -> Iterator[str]:
        """The names of all files."""

    @abstractmethod
    def times(self) -> Iterator[tuple[str, float]]:
        """The names of all files, each with its modification time, in seconds since 1970."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""

    @abstractmethod
    def pieces(self, name: str) -> Iterator[bytes] | None:
        """A file's bytes in pieces; None if it does not exist."""

    @abstractmethod
    def write(self, name: str, content: bytes | memoryview | Path) -> None:
        """Write bytes, or a file of this machine."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None if it does not exist."""
        pieces = self.pieces(name)
        return None if pieces is None else b"".join(pieces)

    def fetch(self, name: str, path: Path) -> str | None:
        """Copy a file to `path`; returns the sha256 of the bytes received, None if it does not exist."""
        pieces = self.pieces(name)
        if pieces is None:
            return None
        found = hashlib.sha256()
        with path.open("wb") as file:
            for piece in pieces:
                found.update(piece)
                with disk_errors(path.parent):
                    file.write(piece)
            with disk_errors(path.parent):
                _to_disk(file)
        return found.hexdigest()


class Folder(Place):
    """A folder, of this machine or one that all machines share."""

    def __init__(self, location: str | Path, setting: str = "cluster.storage"):
        self.location, self._setting = str(location), setting
        self._root = Path(location)

    def name(self, name: str) -> str:
        return str(self._root / name)

    def list(self) -> Iterator[str]:
        for folder, _, files in os.walk(self._root):
            yield from (Path(folder, file).relative_to(self._root).as_posix() for file in files)

    def times(self) -> Iterator[tuple[str, float]]:
        for name in self.list():
            with self._explained("read"), suppress(FileNotFoundError):
                yield name, (self._root / name).stat().st_mtime

    def size(self, name: str) -> int | None:
        with self._explained("read"), suppress(FileNotFoundError):
            return (self._root / name).stat().st_size
        return None

    def pieces(self, name: str) -> Iterator[bytes] | None:
        with self._explained("read"), suppress(FileNotFoundError):
            return self._pieces((self._root / name).open("rb"))
        return None

    def _pieces(self, file) -> Iterator[bytes]:
        with self._explained("read"), file:
            while piece := file.read(CHUNK):
                yield piece

    def write(self, name: str, content: bytes | memoryview | Path) -> None:
        path = self._root / name
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # two machines may write at once
        with self._explained("written"):
            try:
                with disk_errors(self._root):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with partial.open("wb") as file:
                        if isinstance(content, Path):
                            with content.open("rb") as source:
                                shutil.copyfileobj(source, file, CHUNK)
                        else:
                            file.write(content)
                        _to_disk(file)
                    os.replace(partial, path)
            finally:
                self._remove(partial)

    def delete(self, name: str) -> None:
        with self._explained("written"):
            self._remove(self._root / name)

    def _remove(self, path: Path) -> None:
        """Also its folder below the root if that is empty: a bucket has none."""
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        if path.parent != self._root:
            with suppress(OSError):
                path.parent.rmdir()

    @contextmanager
    def _explained(self, wanted: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._root}: cannot be {wanted} ({error.strerror}); expected a writable folder that all "
                f"machines share: correct {self._setting}"
            ) from None


class Bucket(Place):
    """A prefix in an S3-compatible store, reached as `ingest.s3` says."""

    ask_every_s = 5  # it costs a request, and only a person changes it

    def __init__(self, location: str, s3: S3, setting: str = "cluster.storage"):
        self.location, self._s3, self._setting = location, s3, setting
        own = s3.model_copy(update={"anonymous": False, "requester_pays": False})
        self._store = Store(own, location, num_workers=16, setting=setting)

    def __reduce__(self):
        return Bucket, (self.location, self._s3, self._setting)  # a connection cannot be pickled

    def _key(self, name: str) -> str:
        return self._store.prefix + name

    def name(self, name: str) -> str:
        return self._store.name(self._key(name))

    def list(self) -> Iterator[str]:
        return (found.key.removeprefix(self._store.prefix) for found in self._store.list())

    def times(self) -> Iterator[tuple[str, float]]:
        return ((found.key.removeprefix(self._store.prefix), found.modified) for found in self._store.list())

    def size(self, name: str) -> int | None:
        found = self._store.find(self._key(name))
        return found.size if found else None

    def pieces(self, name: str) -> Iterator[bytes] | None:
        found = self._store.find(self._key(name))
        return self._store.read(found, 0, found.size)[1] if found else None

    def write(self, name: str, content: bytes | memoryview | Path) -> None:
        self._store.write(self._key(name), content)

    def delete(self, name: str) -> None:
        self._store.delete(self._key(name))


def open_place(location: str, s3: S3, setting: str = "cluster.storage") -> Place:
    """The storage at a path or at s3://bucket/prefix; `setting` is the key by which the user names it."""
    return Bucket(location, s3, setting) if location.startswith("s3://") else Folder(location, setting)


def _to_disk(file) -> None:
    """So that a power failure cannot lose the bytes of a visible file."""
    file.flush()
    os.fsync(file.fileno())
