"""The two ways in which images and masks lie in a folder, and what does not fit into them.

pairs      images/<id>.<ext> and masks/<id>.<ext>; subfolders are part of the id
BBBC038    <id>/images/<name>.<ext> and <id>/masks/<one file a nucleus>.<ext>
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unetpp.errors import UserError
from unetpp.images import SUFFIXES

EXPECTED = (
    "expected images/<id>.<ext> with masks/<id>.png, or the BBBC038 layout <id>/images/<id>.png with "
    "<id>/masks/<one file a nucleus>.png"
)
JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Sample:
    """An image and its mask files: one, or one for each nucleus. `group`: what it belongs to by its layout."""

    id: str
    image: Path
    masks: tuple[Path, ...]
    group: str | None = None


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used. `file` is relative to the root, with slashes."""

    id: str
    file: str
    reason: str


def is_junk(name: PurePosixPath) -> bool:
    """Hidden files and what systems leave behind, anywhere in a relative path."""
    return any(part.startswith(".") or part in JUNK for part in name.parts)


def is_picture(name: PurePosixPath) -> bool:
    """By the suffix alone."""
    return name.suffix.lower() in SUFFIXES


def find_layout(names: Iterable[PurePosixPath]) -> str | None:
    """ "pairs", "bbbc038" or None for relative file names, junk left out."""
    heads = {name.parts[0] for name in names if len(name.parts) > 1}
    if heads & {"images", "masks"}:
        return "pairs"
    seconds = {name.parts[1] for name in names if len(name.parts) == 3}
    return "bbbc038" if "images" in seconds else None


def list_names(root: Path) -> list[PurePosixPath]:
    """Relative names of all files under `root` that are no junk, sorted."""
    names = (PurePosixPath(path.relative_to(root).as_posix()) for path in root.rglob("*") if not path.is_dir())
    return sorted(name for name in names if not is_junk(name))


def check_names(names: list[PurePosixPath], where: str) -> str:
    """The layout of these relative names, which must hold at least one image and one mask.

    Raises:
        UserError: names `where`, what was found, what was expected.
    """
    if not names:
        raise UserError(f"{where}: found no files; {EXPECTED}")
    layout = find_layout(names)
    if layout is None:
        raise UserError(f"{where}: found {_some(names)} and no images/ in it; {EXPECTED}")
    level = 0 if layout == "pairs" else 1
    for wanted in ("images", "masks"):
        inside = [name for name in names if len(name.parts) > level + 1 and name.parts[level] == wanted]
        if not any(is_picture(name) for name in inside):
            found = f"no image file in {wanted}/ but {_some(inside)}" if inside else f"no {wanted}/ folder with files"
            raise UserError(f"{where}: found {found}; {EXPECTED}, where <ext> is one of {', '.join(SUFFIXES)}")
    return layout


def find_samples(root: Path) -> tuple[list[Sample], list[Problem]]:
    """Samples and problems under `root`, each sorted by id.

    Raises:
        UserError: no such folder, no images at all, or no masks at all.
    """
    if not root.is_dir():
        raise UserError(f"{root}: found {'a file' if root.exists() else 'no such folder'}; {EXPECTED}")
    names = list_names(root)
    layout = check_names(names, str(root))
    names = [name for name in names if is_picture(name)]
    samples, problems = (_find_pairs if layout == "pairs" else _find_bbbc038)(root, names)
    return sorted(samples, key=lambda sample: sample.id), sorted(problems, key=lambda one: (one.id, one.file))


def _find_pairs(root: Path, names: list[PurePosixPath]) -> tuple[list[Sample], list[Problem]]:
    by_folder: dict[str, dict[str, PurePosixPath]] = {"images": {}, "masks": {}}
    problems = []
    for folder, found in by_folder.items():
        same = defaultdict(list)
        for name in names:
            if name.parts[0] == folder:
                id = name.relative_to(folder).with_suffix("").as_posix()
                same[id.casefold()].append((id, name))
        for group in same.values():
            if len(group) == 1:
                found[group[0][0]] = group[0][1]
                continue
            others = ", ".join(str(name) for _, name in group)
            problems += [
                Problem(id, str(name), f"names differ only by case or suffix: {others}; rename one")
                for id, name in group
            ]
    images, masks = by_folder["images"], by_folder["masks"]
    # A name that clashes on one side is already reported; its partner is not a second, unrelated problem.
    clashing = {problem.id.casefold() for problem in problems}
    for id, name in images.items():
        if id not in masks:
            known = "its masks have clashing names" if id.casefold() in clashing else f"no mask masks/{id}.png"
            problems.append(Problem(id, str(name), f"{known}; add it or remove the image"))
    for id, name in masks.items():
        if id not in images:
            known = "its images have clashing names" if id.casefold() in clashing else f"no image images/{id}.<ext>"
            problems.append(Problem(id, str(name), f"{known}; add it or remove the mask"))
    both = images.keys() & masks.keys()
    return [Sample(id, root / images[id], (root / masks[id],)) for id in both], problems


def _find_bbbc038(root: Path, names: list[PurePosixPath]) -> tuple[list[Sample], list[Problem]]:
    folders: dict[str, dict[str, list[PurePosixPath]]] = defaultdict(lambda: {"images": [], "masks": []})
    for name in names:
        if len(name.parts) == 3 and name.parts[1] in ("images", "masks"):
            folders[name.parts[0]][name.parts[1]].append(name)
    samples, problems = [], []
    by_case = defaultdict(list)
    for id in folders:
        by_case[id.casefold()].append(id)
    for id, found in folders.items():
        images, masks = found["images"], found["masks"]
        clashing = by_case[id.casefold()]
        if len(clashing) > 1:
            problems.append(Problem(id, id, f"names differ only by case: {', '.join(clashing)}; rename one"))
        elif len(images) != 1:
            problems.append(Problem(id, f"{id}/images", f"found {len(images)} image files; expected one"))
        elif not masks:
            problems.append(Problem(id, str(images[0]), f"no mask in {id}/masks; add them or remove the image"))
        else:
            samples.append(Sample(id, root / images[0], tuple(root / mask for mask in masks)))
    return samples, problems


def _some(names: Iterable[PurePosixPath]) -> str:
    """The first five by name, and how many more."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(str(name) for name in names[:5]) + more
