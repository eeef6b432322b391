"""Files that are complete or absent, and outputs that replace only the pipeline's own files."""

import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.core.full_disk import disk_errors, telling_full_disk
from unetpp.errors import UserError
from unetpp.files import check_keys, read_json, read_text, sha256

try:
    import fcntl
except ImportError:  # on Windows, where `unetpp predict` runs
    fcntl = None

# In a folder: the files that the pipeline wrote, one line each with size or sha256, and name.
MARKER = ".unetpp"
HOLDING = ".unetpp.partial-"  # how temporary folders for many files begin
LOCK = ".unetpp-lock"  # in a temporary folder: held for as long as its process lives
_declared: set[str] = set()  # files that `check_outputs` let through, and `replacing` marks


def check_outputs(
    folders: Iterable[Path] = (),
    files: Iterable[Path] = (),
    inputs: Iterable[Path] = (),
    overwrite: bool | None = None,
    within: bool = False,
) -> None:
    """Refuse, before any work is done, outputs that would replace files not written by the pipeline.

    Free are names that do not exist, empty folders, and what the markers show to be written by the pipeline and not
    changed since. What killed processes left half-written of these outputs goes.

    Args:
        folders, files: what is to be written by `replacing`.
        inputs: what is read; no output may be one of them, by whatever name, hold one of them, or lie in one.
        overwrite: whether files in the way may be replaced; None where the command has no such option.
        within: outputs may lie in an input.

    Raises:
        UserError: names what is in the way.
    """
    folders, files = [Path(one) for one in folders], [Path(one) for one in files]
    _check_inputs(folders, files, [Path(one) for one in inputs], within)
    names: dict[Path, set[str]] = {}
    for path in (*folders, *files):
        names.setdefault(path.parent, set()).add(_prefix(path.name))
    for parent in names:
        there = next((one for one in (parent, *parent.parents) if os.path.lexists(one)), parent)
        if os.path.lexists(there) and not there.is_dir():
            raise UserError(f"{there}: found a file; expected a folder, or a new name for one")
        if not os.access(there, os.W_OK):
            raise UserError(f"{there}: this user may not write there; choose another place")
    listed, in_the_way = functools.cache(_listed), []
    for folder in folders:
        if folder.is_dir():
            in_the_way += [str(folder / name) for name in islice(_not_ours(folder), 6)]
        elif os.path.lexists(folder):
            raise UserError(f"{folder}: found a file; expected a folder, or a new name for one")
    for file in files:
        if file.is_dir():
            raise UserError(f"{file}: found a folder; expected the name of a file to write")
        if os.path.lexists(file) and not (file.is_file() and (file.name, sha256(file)) in listed(file.parent)):
            in_the_way.append(str(file))
    if in_the_way and not overwrite:
        more = " and more" if len(in_the_way) > 5 else ""
        option = "" if overwrite is None else ", or use --overwrite, which replaces files of the same names"
        raise UserError(
            f"{', '.join(in_the_way[:5])}{more}: already exists, and was not written by this pipeline, or "
            f"was changed since; nothing was done: choose another place, or move them away{option}"
        )
    for parent, prefixes in names.items():
        _sweep(parent, prefixes)
    _declared.update(os.path.realpath(file) for file in files)


def _check_inputs(folders: list[Path], files: list[Path], inputs: list[Path], within: bool) -> None:
    """Refuse outputs that are inputs, hold one or lie in one, and outputs that are or lie in one another."""

    @functools.cache
    def places(path: Path) -> frozenset[tuple[int, int]]:
        """Identities of a path and the folders above it, the same through links or in another case."""
        found = set()
        for place in (path, *path.parents):
            with suppress(OSError):
                facts = place.stat()
                found.add((facts.st_dev, facts.st_ino))
        return frozenset(found)

    read, holding = {}, {}
    for one in (one for one in inputs if one.exists()):
        real = Path(os.path.realpath(one))
        read |= dict.fromkeys(places(real) - places(real.parent), one)
        holding |= dict.fromkeys(places(real.parent), one)
    taken: dict[Path, Path] = {}
    for out in (*folders, *files):
        real = Path(os.path.realpath(out))
        own = places(real) - places(real.parent)
        if same := own & read.keys():
            raise UserError(f"{out}: this output is {read[min(same)]}, which is read: choose another place")
        if above := places(real.parent) & read.keys() if not within else ():
            raise UserError(f"{out}: this output lies in {read[min(above)]}, which is read: choose a place outside it")
        if held := own & holding.keys() if out in folders else ():
            raise UserError(f"{out}: this output holds {holding[min(held)]}, which is read: choose a place next to it")
        if real in taken or any(taken.get(one) in folders for one in real.parents if one in taken):
            raise UserError(
                f"{out}: this output is another output too, or lies in one: choose a separate place for each"
            )
        taken[real] = out


def _not_ours(folder: Path) -> Iterator[str]:
    """The files of a folder that its marker does not list with their sizes."""
    listed = _listed(folder)
    for place, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(place, name) for name in sorted(names + folders)):
            name, is_file = path.relative_to(folder).as_posix(), path.is_symlink() or not path.is_dir()
            if is_file and name != MARKER and (name, str(path.lstat().st_size)) not in listed:
                yield name


def _listed(folder: Path) -> set[tuple[str, str]]:
    try:
        text = (folder / MARKER).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return set()
    return {(name, stamp) for stamp, _, name in (line.partition("  ") for line in text.split("\n"))}


def _mark(partial: Path, path: Path) -> None:
    """Record that the new content of `path` is the pipeline's own."""
    if partial.is_dir():  # by sizes: reading a large data set again would take long
        files = [one for one in sorted(partial.rglob("*")) if one.is_file() and one != partial / MARKER]
        text = "".join(f"{one.lstat().st_size}  {one.relative_to(partial).as_posix()}\n" for one in files)
        (partial / MARKER).write_text(text, encoding="utf-8", errors="surrogateescape")
    elif os.path.realpath(path) in _declared:
        with (path.parent / MARKER).open("a", encoding="utf-8", errors="surrogateescape") as marker:
            marker.write(f"{sha256(partial)}  {path.name}\n")


@telling_full_disk
@contextmanager
def replacing(path: str | Path, held: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path next to `path` for a file or a folder; on success it replaces `path`.

    An error or an interrupt in between leaves what stood at `path` as it was. Files of a folder that are not the
    pipeline's own stay, beside the new ones.

    Args:
        held: of `holding`, for one of many files of a folder.
    """
    path = Path(path)
    if held is not None:
        partial = held / f"{threading.get_ident()}{path.suffix}"
        try:
            yield partial
            _mark(partial, path)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return
    if path.is_dir():
        path = path.resolve()  # a link to another disk stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held_folder(path.parent, _prefix(path.name)) as folder:
        partial = folder / path.name
        yield partial
        with disk_errors(path.parent):
            _mark(partial, path)
            _take_place(partial, path)


@contextmanager
def holding(folder: Path) -> Iterator[Path]:
    """One temporary folder for many files of a folder, which a thread writes one after the other by `replacing`."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder, {HOLDING})
    with _held_folder(folder, HOLDING) as held:
        yield held


def _take_place(partial: Path, path: Path) -> None:
    if not (partial.is_dir() and path.is_dir()):
        os.replace(partial, path)
    elif kept := {path / name for name in _not_ours(path)}:
        for one in [each for each in path.rglob("*") if each.is_file() and each not in kept]:
            one.unlink()
        for one in [each for each in partial.rglob("*") if each.is_file()]:
            target = path / one.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(one, target)
    else:  # by two renames: to delete it first would take a while, in which a kill would leave neither
        os.replace(path, partial.with_name(".former"))
        os.replace(partial, path)


def _prefix(name: str) -> str:
    """How the temporary folders beside an output begin; a name has 255 bytes at most."""
    short = name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()[:40]
    return f".{short}.partial-"


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A temporary folder for the block, after removing those that killed processes left behind."""
    parent = Path(parent or tempfile.gettempdir())
    _sweep(parent, {"unetpp-tmp-"})
    with _held_folder(parent, "unetpp-tmp-") as folder:
        (folder / "in").mkdir()
        yield folder / "in"


def kept_folder() -> Path:
    """A new temporary folder that outlives this process; earlier ones are removed once they are a day old."""
    parent = Path(tempfile.gettempdir())
    _sweep(parent, {"unetpp-kept-"}, hours=24)
    folder = Path(tempfile.mkdtemp(prefix="unetpp-kept-", dir=parent))
    (folder / LOCK).touch()
    (folder / "in").mkdir()
    return folder / "in"


@contextmanager
def _held_folder(parent: Path, prefix: str) -> Iterator[Path]:
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


def _sweep(parent: Path, prefixes: set[str], hours: float = 0) -> None:
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
