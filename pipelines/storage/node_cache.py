"""Prepared files on a cluster: uploaded once to shared storage, fetched once by each node.

The stage uploads the files of a split to `cluster.storage`, under their sha256; each training process asks its
node's cache. The first one fetches and checks the file while the others on the node wait; the lock is the system's
and ends with its process, so that after a kill the next process takes over.
"""

import os
from pathlib import Path

from pipelines.core.files import write_json
from pipelines.core.full_disk import check_space
from pipelines.core.params import Params
from pipelines.core.private import CACHE, make_private
from pipelines.core.sections.ingest import S3
from pipelines.core.temporary_folders import locked
from pipelines.storage.places import Place, open_place
from unetpp.data.manifest import Manifest
from unetpp.errors import UserError
from unetpp.files import check_sha256, read_json, sha256
from unetpp.network.masks import MASK

SPLITS = ("train", "val")
AGAIN = "rerun the command of the stage, which uploads it"


def share(params: Params, prepared: Path, manifest: Manifest, init: tuple[Path, str] | None = None) -> dict | None:
    """Upload the files of train and val to `cluster.storage` if they are missing there.

    Val at the images' own sizes goes with them where objects are parted by it.

    Args:
        init: initial weights of the training run, and their sha256: "init" for `find_file`.

    Returns:
        what `find_file` needs on another machine, as plain values; None if no storage is set, after the local files
        were checked.

    Raises:
        UserError: a file does not have the sha256 of the manifest, or cannot be uploaded.
    """
    digests = {split: manifest.splits[split].sha256 for split in SPLITS}
    parted = params.model.targets != MASK or "model.targets" in params.search.space
    if parted and manifest.val_full_sha256:
        digests[manifest.full_val] = manifest.val_full_sha256
    if params.cluster.storage is None:
        manifest.check(prepared, *digests)
        return None
    storage = open_place(params.cluster.storage, params.ingest.s3)
    for split, digest in digests.items():
        path = prepared / f"{split}.arrow"
        there = storage.size(_name(digest))
        if there is not None and (not path.is_file() or there == path.stat().st_size):
            continue  # without a file: inside a job, whose sender uploaded it
        manifest.check(prepared, split)
        storage.write(_name(digest), path)
        print(f"{path}: uploaded to {storage.name(_name(digest))}", flush=True)
    if init:
        path, digests["init"] = init
        if storage.size(_name(digests["init"])) is None:
            storage.write(_name(digests["init"]), path)
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
        UserError: missing in the storage, damaged there or on the way, or no space for it here.
    """
    storage = open_place(shared["storage"], S3.model_validate(shared["s3"]))
    return fetch(storage, Path(shared["cache"] or CACHE).expanduser(), shared["digests"][split])


def fetch(storage: Place, cache: Path, digest: str) -> Path:
    """The file of a sha256 in the folder `cache`, from `storage` if it is missing."""
    path = cache / _name(digest)
    if _is_sealed(path):
        return path
    try:
        if cache == CACHE.expanduser():
            make_private(cache)
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f"{digest}.lock"):
            if not _is_sealed(path):  # another process may have fetched it meanwhile
                if not (path.is_file() and sha256(path) == digest):
                    _download(storage, path, digest)
                _seal(path)
    except OSError as error:
        raise UserError(
            f"{cache}: {error.strerror or error}; expected a writable folder on this machine: set cluster.cache to one"
        ) from None
    return path


def _download(storage: Place, path: Path, digest: str) -> None:
    name = _name(digest)
    size = storage.size(name)
    if size is None:
        raise UserError(f"{storage.name(name)}: no such file, and cluster.storage should contain it: {AGAIN}")
    partial = path.with_suffix(".partial")  # one fixed name, so that the remains of a killed process are overwritten
    check_space(path.parent, size - (partial.stat().st_size if partial.exists() else 0))
    try:
        found = storage.fetch(name, partial) or "no such file"
        check_sha256(storage.name(name), found, digest, f"remove it there and {AGAIN}")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _name(digest: str) -> str:
    return f"{digest}.arrow"


def _facts(path: Path) -> dict:
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _seal(path: Path) -> None:
    """Record next to a file that its bytes have been checked."""
    write_json(path.with_suffix(".json"), _facts(path))


def _is_sealed(path: Path) -> bool:
    """Whether a file was checked once and has not been written since: cheap, as every process asks at its start."""
    try:
        return read_json(path.with_suffix(".json"), AGAIN) == _facts(path)
    except (UserError, OSError):  # no record, or no file next to it
        return False
