"""Which layout a tree of files has and which of its files belong to it, by their names alone.

So a set is known before it is fetched: every source asks here what to bring along.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from unetpp.errors import UserError
from unetpp.images.pictures import SUFFIXES

EXPECTED = (
    "expected images/<id>.<ext> with masks/<id>.png, or the BBBC038 layout <id>/images/<id>.png with "
    "<id>/masks/<one file a nucleus>.png, or images/ with COCO's annotations.json"
)
JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}


def is_junk(name: PurePosixPath) -> bool:
    """Hidden files and what systems leave behind, anywhere in a relative path."""
    return any(part.startswith(".") or part in JUNK for part in name.parts)


def is_picture(name: PurePosixPath) -> bool:
    """By the suffix alone."""
    return name.suffix.lower() in SUFFIXES


def is_annotations(name: PurePosixPath) -> bool:
    """Whether it is named as a COCO file."""
    return str(name) == "annotations.json" or (
        len(name.parts) == 2 and name.parts[0] == "annotations" and name.suffix.lower() == ".json"
    )


def belongs(name: PurePosixPath, layout: str) -> bool:
    """Whether a file of a set of this layout is one of its images, masks or annotations, by its name."""
    if layout == "coco" and is_annotations(name):
        return True
    level = 1 if layout == "bbbc038" else 0
    folders = ("images",) if layout == "coco" else ("images", "masks")
    return len(name.parts) > level + 1 and name.parts[level] in folders and is_picture(name)


def find_layout(names: Iterable[PurePosixPath]) -> str | None:
    """ "pairs", "coco", "bbbc038" or None for relative file names, junk left out."""
    names = list(names)
    heads = {name.parts[0] for name in names if len(name.parts) > 1}
    if "images" in heads and "masks" not in heads and any(map(is_annotations, names)):
        return "coco"
    if heads & {"images", "masks"}:
        return "pairs"
    seconds = {name.parts[1] for name in names if len(name.parts) == 3}
    return "bbbc038" if "images" in seconds else None


def list_names(root: Path) -> list[PurePosixPath]:
    """Relative names of all files under `root` that are no junk, sorted."""
    names = (PurePosixPath(path.relative_to(root).as_posix()) for path in root.rglob("*") if not path.is_dir())
    return sorted(name for name in names if not is_junk(name))


def check_names(names: list[PurePosixPath], where: str) -> str:
    """The layout of these relative names, which must hold at least one image and one mask or annotation file.

    Raises:
        UserError: names `where`, what was found, what was expected.
    """
    if not names:
        raise UserError(f"{where}: found no files; {EXPECTED}")
    layout = find_layout(names)
    if layout is None:
        raise UserError(f"{where}: found {_some(names)} and no images/ in it; {EXPECTED}")
    annotations = [name for name in names if is_annotations(name)]
    if layout == "pairs" and annotations:
        raise UserError(
            f"{where}: found masks/ and also {_some(annotations)}, so it may be pairs or COCO; expected one of the "
            "two: move the one that does not count out of the folder"
        )
    level = 1 if layout == "bbbc038" else 0
    for wanted in ("images",) if layout == "coco" else ("images", "masks"):
        inside = [name for name in names if len(name.parts) > level + 1 and name.parts[level] == wanted]
        if not any(is_picture(name) for name in inside):
            found = f"no image file in {wanted}/ but {_some(inside)}" if inside else f"no {wanted}/ folder with files"
            raise UserError(f"{where}: found {found}; {EXPECTED}, where <ext> is one of {', '.join(SUFFIXES)}")
    return layout


def _some(names: Iterable[PurePosixPath]) -> str:
    """The first five by name, and how many more."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(str(name) for name in names[:5]) + more
