"""The images that a command names: files, folders (searched recursively) and patterns."""

import fnmatch
import glob
import os
from pathlib import Path

from pipelines.storage.folder_walk import PLAIN, walk
from pipelines.storage.templates import is_picture
from unetpp.errors import UserError
from unetpp.images.pictures import SUFFIXES


def named(pattern: str) -> list[Path]:
    """The file or folder of this name, or else those that match it as a pattern."""
    return [Path(name) for name in ([pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True))]


def find_images(patterns: list[str]) -> tuple[list[Path], list[str]]:
    """The image files that files, folders (searched recursively) and glob patterns name.

    Returns:
        the images, sorted, and a message for each path that is not a readable file or folder.

    Raises:
        UserError: a pattern that matches nothing, or no image among the matches.
    """
    found: set[Path] = set()
    problems: list[str] = []
    for pattern in patterns:
        base, rest = _split(pattern)
        names = named(base)
        matched = bool(names and not rest)
        for path in names:
            if path.is_dir():
                files, refused = walk(path, "name {} itself")
                chosen = [path / name for name in files if (_fits(name.parts, rest) if rest else is_picture(name))]
                found.update(chosen)
                matched |= bool(chosen)
                problems += map(str, refused)
            elif path.is_file():
                found.add(path)
            else:
                problems.append(f"{path}: found a broken link, or {PLAIN}: leave it out")
        if not matched:
            raise UserError(
                "\n".join([f"{pattern}: no such file or folder, and no file matches it as a pattern", *problems])
            )
    if not found:
        expected = f"expected files ending in {', '.join(sorted(SUFFIXES))}"
        raise UserError("\n".join([f"{', '.join(patterns)}: found no image there; {expected}", *problems]))
    return sorted(found), problems


def _split(pattern: str) -> tuple[str, tuple[str, ...]]:
    """A pattern up to `**`, and the rest of it, so that every folder is walked by the same code."""
    parts = Path(pattern).parts
    if "**" not in parts or os.path.exists(pattern):
        return pattern, ()
    at = parts.index("**")
    return str(Path(*parts[:at])), parts[at:]


def _fits(name: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a name match those of a pattern, in which `**` matches any number of parts."""
    if not pattern or not name:
        return not name and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return _fits(name, pattern[1:]) or _fits(name[1:], pattern)
    return fnmatch.fnmatchcase(name[0], pattern[0]) and _fits(name[1:], pattern[1:])


def searched(patterns: list[str]) -> list[Path]:
    """The folders that these patterns search recursively."""
    return [path for pattern in patterns for path in named(_split(pattern)[0]) if path.is_dir()]
