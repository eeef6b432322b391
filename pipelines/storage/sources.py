"""Where raw images come from: a folder, an archive, an address, a bucket, or the built-in generator.

Files are written as they are. Only `http` and `s3` use the network.
"""

import hashlib
import os
import shutil
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipelines.core.full_disk import check_space, disk_errors
from pipelines.core.redaction import redacted
from pipelines.core.sections.ingest import Ingest
from pipelines.storage import http_download, s3_download
from pipelines.storage.archives import Names, open_archive
from pipelines.storage.folder_walk import walk
from pipelines.storage.naming.layout_names import choose, is_junk
from pipelines.storage.naming.templates import Layout
from pipelines.storage.s3 import Object, Store
from pipelines.storage.synthetic import write_images
from unetpp.errors import UserError
from unetpp.files import check_sha256, sha256

BLOCK = 4096  # bytes of a disk that a small file takes
SUFFIXES = {"zip": (".zip",), "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")}


@dataclass(frozen=True)
class Source:
    """What was fetched: a description of the source, and its facts about single files beyond their bytes, by key."""

    description: dict
    layout: Layout | None = None  # of its names; None for the built-in images, which are pairs
    facts: dict[str, dict] = field(default_factory=dict)


def fetch(params: Ingest, out: Path, cache: Path) -> Source:
    """Write the raw files of the source that `params` names into the new folder `out`.

    Downloads are kept in the folder `cache`, so that the next run, after an interruption or a change, fetches only the
    rest.

    Raises:
        UserError: names the path, address or entry, what was found, what was expected.
    """
    with disk_errors(out.parent):
        out.mkdir(parents=True)
    location = str(params.location)
    if params.kind == "synthetic":
        check_space(out.parent, params.synthetic.num_images * (2 * params.synthetic.size_px**2 + 2 * BLOCK), "ingest")
        with disk_errors(out):
            write_images(params.synthetic, params.num_workers, out)
        return Source({"kind": "synthetic", "location": None, **params.synthetic.model_dump()})
    if params.kind == "folder":
        layout = _copy_folder(params, Path(location).expanduser(), out)
        return Source({"kind": "folder", "location": location}, layout)
    if params.kind == "s3":
        return _fetch_bucket(params, out, cache)
    if params.kind == "http":
        path, digest = http_download.download(location, params.sha256, cache / "http")
        if params.sha256 is None:
            hold = f"to pin it: -S ingest.sha256={digest}"
            print(f"ingest: {redacted(location)} has the sha256 {digest}; {hold}")
        layout = _extract(path, None, location, params, out)
    else:
        path = Path(location).expanduser()
        digest = _hash_archive(path, params)
        layout = _extract(path, params.kind, str(path), params, out)
    return Source({"kind": params.kind, "location": redacted(location), "sha256": digest}, layout)


def _given(params: Ingest) -> Layout | None:
    return Layout("pairs", **params.layout.model_dump()) if params.layout else None


def _copy_folder(params: Ingest, root: Path, out: Path) -> Layout:
    links_to = [Path(one).expanduser() for one in params.links_to]
    if root.is_file() and root.suffix.lower() in (".txt", ".csv", ".lst"):
        raise UserError(
            f"{root}: found a list; ingest.location must be a folder of the files themselves: if the list contains "
            f"addresses, fetch them into one first: wget -x -nH -P images_and_masks -i {root}"
        )
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        kind = next((kind for kind, suffixes in SUFFIXES.items() if root.name.lower().endswith(suffixes)), None)
        hint = f"; for a {kind} set ingest.kind={kind}" if kind else ""
        raise UserError(f"{root}: found {found}; ingest.location must be a folder with images/ and masks/{hint}")
    sizes, problems = walk(root, "move that into the folder, or name it in ingest.links_to: [{}]", links_to)
    if problems:
        lines = [f"\n  {problem}" for problem in problems[1:5]]
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{problems[0]}{''.join(lines)}{more}")
    layout, kept = choose(sizes, str(root), _given(params))
    check_space(out.parent, sum(sizes[name] + BLOCK for name in kept.values()), "ingest")
    for name, original in kept.items():
        target = out / name
        with disk_errors(out):
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A copy, not a hard link: later changes to the user's files must not change ours.
            with disk_errors(out):
                shutil.copyfile(root / original, target)
        except OSError as error:
            raise UserError(f"{root / original}: cannot be read ({error.strerror}); expected a readable file") from None
    return layout


def _hash_archive(path: Path, params: Ingest) -> str:
    """The sha256 of a local archive, which must be the one in params, if set."""
    if not path.is_file():
        found = "a folder; for a folder set ingest.kind=folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: found {found}; ingest.location must be a {params.kind} file")
    digest = sha256(path)
    check_sha256(path, digest, params.sha256 or digest, "it is a different file, or ingest.sha256 is wrong")
    return digest


def _extract(path: Path, kind: str | None, where: str, params: Ingest, out: Path) -> Layout:
    """Write the images and masks of the archive at `path`, known to the user as `where`."""
    with closing(open_archive(path, kind, where)) as archive:
        layout, kept = choose(archive.sizes, where, _given(params))
        check_space(out.parent, sum(archive.sizes[name] + BLOCK for name in kept.values()), "ingest")
        archive.extract({original: out / name for name, original in kept.items()})
    return layout


def _fetch_bucket(params: Ingest, out: Path, cache: Path) -> Source:
    """Fetch the images and masks under an S3 prefix into the cache, and from there to `out`."""
    location = str(params.location)
    store = Store(params.s3, location, params.num_workers)
    names = Names(location, "key", "rename or remove the object")
    objects: dict[PurePosixPath, Object] = {}
    for one in store.list():
        inner = one.key.removeprefix(store.prefix)
        path = names.check(inner, one.key)
        if not is_junk(path):
            if str(path) != inner:
                raise names.refuse(one.key, "has an empty or a . part in its name")
            names.add(path, one.key)
            objects[path] = one
    names.check_folders()
    layout, kept = choose(objects, location, _given(params))
    chosen = {name: objects[original] for name, original in kept.items()}
    # A folder for each prefix of each store: its cache contains the objects of the last listing.
    identity = hashlib.sha256(f"{params.s3.endpoint}\n{location}".encode()).hexdigest()[:40]
    fetched = s3_download.download(store, list(chosen.values()), cache / "s3" / identity, params.num_workers)
    facts = {}
    for name, one in chosen.items():
        source = fetched[one.key]
        _place(source.path, out / name)
        version = {"version_id": source.version_id} if source.version_id else {}
        facts[name.as_posix()] = {"etag": one.etag, **version, "sha256": source.sha256}
    return Source({"kind": "s3", "location": location, "endpoint": params.s3.endpoint}, layout, facts)


def _place(source: Path, target: Path) -> None:
    """A hard link to a file of the cache; a copy if the file system has none."""
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
