"""What the pipeline may replace: what its markers list as its own, and no input of the command."""

import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from pipelines.core.temporary_folders import prefix, sweep
from unetpp.errors import UserError
from unetpp.files import sha256

# In a folder: the files that the pipeline wrote, one line each with size or sha256, and name.
MARKER = ".unetpp"
_declared: set[str] = set()  # files that `check_outputs` let through, and `mark` lists


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
        names.setdefault(path.parent, set()).add(prefix(path.name))
    for parent in names:
        there = next((one for one in (parent, *parent.parents) if os.path.lexists(one)), parent)
        if os.path.lexists(there) and not there.is_dir():
            raise UserError(f"{there}: found a file; expected a folder, or a new name for one")
        if not os.access(there, os.W_OK):
            raise UserError(f"{there}: this user may not write there; choose another place")
    listed, in_the_way = functools.cache(_listed), []
    for folder in folders:
        if folder.is_dir():
            in_the_way += [str(folder / name) for name in islice(not_ours(folder), 6)]
        elif os.path.lexists(folder):
            raise UserError(f"{folder}: found a file; expected a folder, or a new name for one")
    for file in files:
        if file.is_dir():
            raise UserError(f"{file}: found a folder; expected the name of a file to write")
        if os.path.lexists(file) and not (file.is_file() and (_line(file.name), sha256(file)) in listed(file.parent)):
            in_the_way.append(str(file))
    if in_the_way and not overwrite:
        more = " and more" if len(in_the_way) > 5 else ""
        option = "" if overwrite is None else ", or use --overwrite, which replaces files of the same names"
        raise UserError(
            f"{', '.join(in_the_way[:5])}{more}: already exists, and was not written by this pipeline, or "
            f"was changed since; nothing was done: choose another place, or move them away{option}"
        )
    for parent, prefixes in names.items():
        sweep(parent, prefixes)
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


def not_ours(folder: Path) -> Iterator[str]:
    """The files of a folder that its marker does not list with their sizes."""
    listed = _listed(folder)
    for place, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(place, name) for name in sorted(names + folders)):
            name, is_file = path.relative_to(folder).as_posix(), path.is_symlink() or not path.is_dir()
            if is_file and name != MARKER and (_line(name), str(path.lstat().st_size)) not in listed:
                yield name


def _listed(folder: Path) -> set[tuple[str, str]]:
    try:
        text = (folder / MARKER).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return set()
    return {(name, stamp) for stamp, _, name in (line.partition("  ") for line in text.split("\n"))}


def _line(name: str) -> str:
    """A name as a marker lists it: with line breaks, which names may have, it is still one line."""
    return name.replace("\n", r"\n").replace("\r", r"\r")


def mark(partial: Path, path: Path) -> None:
    """Record that the new content of `path` is the pipeline's own."""
    if partial.is_dir():  # by sizes: reading a large data set again would take long
        files = [one for one in sorted(partial.rglob("*")) if one.is_file() and one != partial / MARKER]
        text = "".join(f"{one.lstat().st_size}  {_line(one.relative_to(partial).as_posix())}\n" for one in files)
        (partial / MARKER).write_text(text, encoding="utf-8", errors="surrogateescape")
    elif os.path.realpath(path) in _declared:
        with (path.parent / MARKER).open("a", encoding="utf-8", errors="surrogateescape") as marker:
            marker.write(f"{sha256(partial)}  {_line(path.name)}\n")
