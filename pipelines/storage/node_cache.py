"""Prepared files on a cluster: put once where all nodes reach them, fetched once by each node.

The stage puts the files of a split into `cluster.storage`, under their sha256; each process that trains asks its
node's cache. The first one fetches and checks the file while the others of the node wait for it; the lock is the
system's and ends with the process that holds it, so that a killed fetcher hands over to the next.
"""

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pipelines.core.checksums import sha256
from pipelines.core.data_sections import S3
from pipelines.core.files import check_space, disk_errors, write_json
from pipelines.core.params import Params
from pipelines.storage.s3 import Store
from unetpp.errors import UserError

CHUNK = 2**20
DEFAULT_CACHE = "~/.cache/unetpp"


class Storage(Protocol):
    """Files by name, each visible whole or not at all."""

    def size(self, name: str) -> int | None: ...

    def write(self, name: str, path: Path) -> None: ...

    def read(self, name: str) -> Iterator[bytes]: ...

    def name(self, name: str) -> str:
        """A file as the user knows it."""
        ...


class Folder:
    """A folder that all machines share."""

    def __init__(self, location: str):
        self._root = Path(location)

    def name(self, name: str) -> str:
        return str(self._root / name)

    def size(self, name: str) -> int | None:
        try:
            return (self._root / name).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self._root}: cannot be read ({error.strerror}); correct cluster.storage") from None

    def write(self, name: str, path: Path) -> None:
        partial = self._root / f".{name}.{uuid.uuid4().hex}"  # two machines may write at once
        try:
            with disk_errors(self._root):
                self._root.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, partial)
                os.replace(partial, self._root / name)
        except OSError as error:
            raise UserError(
                f"{self._root}: cannot be written ({error.strerror}); expected a folder that all machines share: "
                "correct cluster.storage"
            ) from None
        finally:
            partial.unlink(missing_ok=True)

    def read(self, name: str) -> Iterator[bytes]:
        try:
            with open(self._root / name, "rb") as file:
                while piece := file.read(CHUNK):
                    yield piece
        except OSError as error:
            raise UserError(f"{self.name(name)}: cannot be read ({error.strerror})") from None


class Bucket:
    """A prefix in an S3-compatible store, reached as `ingest.s3` says."""

    def __init__(self, location: str, s3: S3):
        own = s3.model_copy(update={"anonymous": False, "requester_pays": False})
        self._store = Store(own, location, num_workers=8, setting="cluster.storage")

    def name(self, name: str) -> str:
        return self._store.name(self._store.prefix + name)

    def size(self, name: str) -> int | None:
        found = self._store.find(self._store.prefix + name)
        return found.size if found else None

    def write(self, name: str, path: Path) -> None:
        self._store.upload(path, self._store.prefix + name)

    def read(self, name: str) -> Iterator[bytes]:
        found = self._store.find(self._store.prefix + name)
        if found is None:
            raise UserError(f"{self.name(name)}: is gone; give the same command again")
        return self._store.read(found, 0, found.size)[1]


def open_storage(location: str, s3: S3) -> Storage:
    """The storage at a path or at s3://bucket/prefix."""
    return Bucket(location, s3) if location.startswith("s3://") else Folder(location)


def share(params: Params, prepared: Path, manifest: dict) -> dict | None:
    """Put the files of train and val into `cluster.storage` where they are not there yet.

    Returns:
        what `find_file` needs on another machine, as plain values; None where no storage is set.

    Raises:
        UserError: a file has not the sha256 of the manifest, or cannot be put there.
    """
    if params.cluster.storage is None:
        return None
    storage = open_storage(params.cluster.storage, params.ingest.s3)
    digests = {split: manifest["splits"][split]["sha256"] for split in ("train", "val")}
    for split, digest in digests.items():
        path = prepared / f"{split}.arrow"
        there = storage.size(_name(digest))
        if there is not None and (not path.is_file() or there == path.stat().st_size):
            continue  # without a file: inside a job, whose sender put it there
        found = sha256(path) if path.is_file() else "no such file"
        if found != digest:
            raise UserError(
                f"{path}: found {found}; expected the sha256 {digest}, as in manifest.json: run `dvc repro prepare`"
            )
        storage.write(_name(digest), path)
        print(f"{path}: put into {storage.name(_name(digest))}", flush=True)
    return {
        "storage": params.cluster.storage,
        "cache": params.cluster.cache,
        "s3": params.ingest.s3.model_dump(mode="json"),
        "digests": digests,
    }


def find_file(shared: dict, split: str) -> Path:
    """The file of a split in this node's cache, fetched by the first process that asks.

    Args:
        shared: what `share` returned.

    Raises:
        UserError: not in the storage, damaged there or on the way, or no space for it here.
    """
    storage = open_storage(shared["storage"], S3.model_validate(shared["s3"]))
    return fetch(storage, Path(shared["cache"] or DEFAULT_CACHE).expanduser(), shared["digests"][split])


def fetch(storage: Storage, cache: Path, digest: str) -> Path:
    """The file of a sha256 in the folder `cache`, from `storage` where it is not there yet."""
    path = cache / _name(digest)
    if _is_sealed(path):
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{digest}.lock"):
            if not _is_sealed(path):  # another process may have fetched it meanwhile
                if not (path.is_file() and sha256(path) == digest):
                    _download(storage, path, digest)
                _seal(path)
    except OSError as error:
        raise UserError(
            f"{cache}: {error.strerror or error}; expected a folder of this machine that can be written: set "
            "cluster.cache to one"
        ) from None
    return path


def _download(storage: Storage, path: Path, digest: str) -> None:
    name = _name(digest)
    size = storage.size(name)
    if size is None:
        raise UserError(
            f"{storage.name(name)}: no such file, and cluster.storage should hold it: give the command of the stage "
            "again, which puts it there"
        )
    partial = path.with_suffix(".partial")  # of this one name, so that what a killed process left is overwritten
    check_space(path.parent, size - (partial.stat().st_size if partial.exists() else 0))
    found = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            for piece in storage.read(name):
                found.update(piece)
                with disk_errors(path.parent):
                    file.write(piece)
            with disk_errors(path.parent):
                file.flush()
                os.fsync(file.fileno())
        if found.hexdigest() != digest:
            raise UserError(
                f"{storage.name(name)}: found the sha256 {found.hexdigest()}; expected {digest}: remove it there and "
                "give the command of the stage again, which puts it there"
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _name(digest: str) -> str:
    return f"{digest}.arrow"


def _facts(path: Path) -> dict:
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _seal(path: Path) -> None:
    """Note that the bytes of a file have been checked, beside it."""
    write_json(path.with_suffix(".json"), _facts(path))


def _is_sealed(path: Path) -> bool:
    """Whether a file was checked once and has not been written since: cheap, as every process asks at its start."""
    try:
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == _facts(path)
    except (OSError, ValueError):
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, and wait for it; on the file that has this name now, should somebody clean up."""
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                is_named = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                is_named = False
            if is_named:
                yield
                return
