"""Downloads many objects into a persistent cache: in parts, in parallel, and never the same part twice.

The cache is a folder that no stage declares as its output (DVC deletes outputs before a stage runs). A journal in it
lists complete objects and parts of objects; it is append-only, and a line is added after its bytes are on disk, so a
run can be interrupted anywhere. The sha256 of complete objects is checked before they are reused.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipelines.console.progress import watched_bytes
from pipelines.core.files import replacing
from pipelines.core.full_disk import check_space, disk_errors
from pipelines.core.temporary_folders import locked
from pipelines.storage.s3 import Object, Store
from unetpp.errors import UserError
from unetpp.files import sha256

PART_BYTES = 16 * 2**20
LOCK = "lock"


@dataclass(frozen=True)
class Fetched:
    """A complete object in the cache."""

    path: Path
    sha256: str
    version_id: str | None


def download(store: Store, objects: list[Object], cache: Path, num_workers: int) -> dict[str, Fetched]:
    """Fetch those of `objects` that are not in the folder `cache` yet; return all of them by key.

    Afterwards the cache contains only these objects.

    Raises:
        UserError: an object changed, is damaged or cannot be read; another run is using this cache.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(cache / LOCK, wait=False))
        except BlockingIOError:
            raise UserError(f"{cache}: another run is downloading into this folder; wait for it to end") from None
        journal = Journal(cache)
        fetched: dict[str, Fetched] = {}

        def look_up(source: Object) -> None:
            if found := journal.find(source):
                fetched[source.key] = found

        _run_all(look_up, objects, num_workers)
        missing = [one for one in objects if one.key not in fetched]
        check_space(cache, sum(one.size for one in missing) - journal.bytes_of_parts(), "ingest")
        with watched_bytes("downloading", sum(one.size for one in missing)) as progress:
            unfinished = [_Unfinished(store, one, journal, progress) for one in missing]
            parts = ((one, start) for one in unfinished for start in one.starts())
            _run_all(lambda part: part[0].fetch(part[1]), parts, num_workers)
        for one in missing:
            fetched[one.key] = journal.entry(one)
        journal.keep(objects)
    return fetched


class Journal:
    """The contents of the cache: a line of JSON for each complete object, and complete part of an unfinished one."""

    def __init__(self, cache: Path):
        self._cache = cache
        self._path = cache / "journal.jsonl"
        self._lock = threading.Lock()
        self._whole: dict[str, dict] = {}
        self._parts: dict[str, dict[int, dict]] = {}  # by name and first byte
        for line in self._path.read_bytes().splitlines() if self._path.exists() else ():
            try:
                self._apply(json.loads(line))
            except (ValueError, RecursionError):
                continue  # an interrupted run was writing it: its bytes are fetched again
        self._rewrite()

    def path(self, source: Object) -> Path:
        """The path of a complete object. Other content of the same key has another path."""
        return self._cache / _name(source)

    def entry(self, source: Object) -> Fetched:
        """The journal's entry for a complete object."""
        line = self._whole[_name(source)]
        return Fetched(self.path(source), line["sha256"], line["version_id"])

    def find(self, source: Object) -> Fetched | None:
        """A complete object whose bytes are unchanged, or None."""
        path = self.path(source)
        if _name(source) not in self._whole or not path.is_file():
            return None
        # Somebody may have changed the file: the stage's output shares its bytes.
        return self.entry(source) if sha256(path) == self.entry(source).sha256 else None

    def parts(self, source: Object) -> dict[int, dict]:
        """The complete parts of an unfinished object: facts by first byte."""
        return self._parts.get(_name(source), {})

    def bytes_of_parts(self) -> int:
        """How many bytes of unfinished objects have been fetched, at most."""
        return sum(len(parts) for parts in self._parts.values()) * PART_BYTES

    def add(self, source: Object, **line) -> None:
        """Record that an object (sha256, version_id) or a part of it (start, version_id, md5) is complete."""
        line = {"name": _name(source)} | line
        with disk_errors(self._cache), self._lock, self._path.open("a", encoding="utf-8") as file:
            self._apply(line)
            file.write(json.dumps(line) + "\n")

    def keep(self, objects: Iterable[Object]) -> None:
        """Delete all but these objects."""
        names = {_name(one) for one in objects}
        self._whole = {name: line for name, line in self._whole.items() if name in names}
        self._parts = {}
        self._rewrite()
        for path in self._cache.iterdir():
            if path.name not in names | {self._path.name, LOCK}:
                path.unlink()

    def _apply(self, line: dict) -> None:
        if "start" in line:
            self._parts.setdefault(line["name"], {})[line["start"]] = line
        else:
            self._whole[line["name"]] = line

    def _rewrite(self) -> None:
        lines = [*self._whole.values(), *(line for parts in self._parts.values() for line in parts.values())]
        with replacing(self._path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _name(source: Object) -> str:
    return hashlib.sha256(json.dumps([source.key, source.size, source.etag]).encode()).hexdigest()[:40]


class _Unfinished:
    """An object being fetched. Any thread takes any part; the last one to finish checks the whole object."""

    def __init__(self, store: Store, source: Object, journal: Journal, progress: tqdm):
        self._store, self._source, self._journal, self._progress = store, source, journal, progress
        self._path = journal.path(source).with_suffix(".partial")
        size = self._path.stat().st_size if self._path.exists() else -1
        self._done = {start: part for start, part in journal.parts(source).items() if start < size}
        self._all = range(0, max(1, source.size), PART_BYTES)
        self._lock = threading.Lock()
        progress.update(sum(self._stop(start) - start for start in self._done))

    def starts(self) -> list[int]:
        """The first bytes of the parts to fetch; the last one again if only the final check is missing."""
        return [start for start in self._all if start not in self._done] or [self._all[-1]]

    def _stop(self, start: int) -> int:
        return min(start + PART_BYTES, self._source.size)

    def fetch(self, start: int) -> None:
        facts, pieces = self._store.read(self._source, start, self._stop(start))
        self._path.touch()
        with disk_errors(self._path.parent), self._path.open("r+b", buffering=0) as file:
            file.seek(start)
            for piece in pieces:
                left = memoryview(piece)
                while left:  # a write may take only a part of it
                    left = left[file.write(left) :]
                self._progress.update(len(piece))
            if len(self._all) > 1:
                os.fsync(file.fileno())  # the journal must not list bytes that a power failure can lose
        part = {"start": start, "version_id": facts.version_id, "md5": facts.md5}
        if len(self._all) > 1:
            self._journal.add(self._source, **part)
        with self._lock:
            self._done[start] = part
            whole = len(self._done) == len(self._all)
        if whole:
            self._finish(part)

    def _finish(self, part: dict) -> None:
        with self._path.open("rb") as file:
            if part["md5"] and hashlib.file_digest(file, "md5").hexdigest() != part["md5"]:
                self._path.unlink()
                raise UserError(
                    f"{self._store.name(self._source.key)}: the bytes do not match the ETag {self._source.etag} "
                    "(their MD5 differs); rerun the command, and if it happens again (the store's ETags are not MD5), "
                    "set ingest.s3.checksums=when_required"
                )
        digest = sha256(self._path)
        os.replace(self._path, self._journal.path(self._source))
        self._journal.add(self._source, sha256=digest, version_id=part["version_id"])


def _run_all(work: Callable, items: Iterable, num_workers: int) -> None:
    """`work` on each item, by threads. The first error, or Ctrl-C, ends it; running threads are then abandoned."""
    queue, lock, errors = iter(items), threading.Lock(), []

    def drain() -> None:
        while not errors:
            with lock:
                item = next(queue, None)
            if item is None:
                return
            try:
                work(item)
            except BaseException as error:
                errors.append(error)

    # Daemons: a thread that waits for a silent server must not delay the end of the program.
    threads = [threading.Thread(target=drain, daemon=True) for _ in range(num_workers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive() and not errors:
                thread.join(0.2)
    except KeyboardInterrupt:
        errors.append(KeyboardInterrupt())
    if errors:
        for thread in threads:
            thread.join(2 / num_workers)
        raise errors[0]
