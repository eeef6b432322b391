"""Which layout a tree of files has and which of its files belong to it, by their names alone.

So a set is known before it is fetched: every source asks here what to bring along.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from unetpp.errors import UserError
from unetpp.images.pictures import SUFFIXES

EXPECTED = (
    "expected images/<id>.<ext> with masks/<id>.png, or the BBBC038 layout <id>/images/<id>.png with "
    "<id>/masks/<one file a nucleus>.png, or images/ with COCO's annotations.json"
)
# Of macOS, Windows, the root of a disk, and of network storage, whose folders hold small copies of the pictures.
JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini", "lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir"}
FOLDERS = {"images", "masks", "annotations"}
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


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
    if layout == "bbbc038":
        return len(name.parts) == 3 and name.parts[1] in ("images", "masks") and is_picture(name)
    folders = ("images",) if layout == "coco" else ("images", "masks")
    return len(name.parts) > 1 and name.parts[0] in folders and is_picture(name)


def find_layout(names: Iterable[PurePosixPath]) -> str | None:
    """ "pairs", "coco", "bbbc038" or None for relative file names, junk left out."""
    names = list(names)
    heads = {name.parts[0] for name in names if len(name.parts) > 1}
    if "images" in heads and "masks" not in heads and any(map(is_annotations, names)):
        return "coco"
    if heads & {"images", "masks"}:
        return "pairs"
    return "bbbc038" if any(name.parts[1] == "images" for name in names if len(name.parts) > 2) else None


def composed(text: str) -> str:
    """The same letters in the one form of Unicode in which names are compared: macOS writes others than Linux."""
    return unicodedata.normalize("NFC", text)


def list_names(root: Path) -> list[PurePosixPath]:
    """Relative names of all files under `root`, a folder of our own, that are no junk, sorted."""
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
    if layout == "bbbc038":
        _check_one_set(names, where)
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


def _check_one_set(names: Iterable[PurePosixPath], where: str) -> None:
    """Refuse sets beside each other, which have a folder images/ each as samples of BBBC038 have."""
    images = [name for name in names if len(name.parts) > 2 and name.parts[1] == "images" and is_picture(name)]
    counts = Counter(name.parts[0] for name in images)
    if counts and ({head.lower() for head in counts} <= SPLITS or all(count > 1 for count in counts.values())):
        raise UserError(
            f"{where}: found images/ in each of {_some(sorted(counts))}, which are sets of their own; expected one "
            "set, with one images/ and one masks/: name one of them in ingest.location, or put all together as "
            "images/<its name>/... and masks/<its name>/... (stage prepare divides by itself)"
        )


def choose(names: Iterable[PurePosixPath], where: str) -> dict[PurePosixPath, PurePosixPath]:
    """The files of the set among those of a source: by the name that each has in the set, its name at the source.

    The folders that wrap everything are gone, and bytes that are no UTF-8 stand as %E9. It tells how many others are
    left out.

    Raises:
        UserError: as `check_names`, or two files that would have one name.
    """
    names = sorted(names)
    prefix = _wrapper(names)
    inner = {name.relative_to(prefix): name for name in names if name.is_relative_to(prefix) and name != prefix}
    layout = check_names(list(inner), where)
    kept = {name: original for name, original in inner.items() if belongs(name, layout)}
    if len(kept) < len(names):
        taken = set(kept.values())
        left_out = next(name for name in names if name not in taken)
        others = len(names) - len(kept)
        print(f"left out {others} files that are no images of the set, such as {_spelled(str(left_out))}")
    spelled: dict[PurePosixPath, PurePosixPath] = {}
    foreign = 0
    for name, original in kept.items():
        written = PurePosixPath(_spelled(str(name)))
        foreign += written != name
        if (other := spelled.setdefault(written, original)) != original:
            raise UserError(f"{where}: found {str(other)!r} and {str(original)!r}, which become one name; rename one")
    if foreign:
        print(f"{foreign} names are no UTF-8: their other bytes are written as %E9 and the like")
    return spelled


def _spelled(name: str) -> str:
    """A name in which bytes that are no UTF-8 (Python holds them as half a character) can be written anywhere."""
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)


def _wrapper(names: Iterable[PurePosixPath]) -> PurePosixPath:
    """The folders that wrap everything, one in the other, or `.` where the top level is the data."""
    prefix, inner = PurePosixPath(), list(names)
    while True:
        heads = {name.parts[0] for name in inner if len(name.parts) > 1}
        head = min(heads, default="")
        # One BBBC038 sample alone looks like a wrapper around pairs; its image bears the folder's name.
        single = any(name.parts[:2] == (head, "images") and name.stem == head for name in inner)
        if len(heads) != 1 or heads & FOLDERS or single:
            return prefix if find_layout(inner) else PurePosixPath()
        prefix /= head
        inner = [name.relative_to(head) for name in inner if len(name.parts) > 1]


def _some(names: Iterable[object]) -> str:
    """The first five by name, and how many more."""
    names = [str(name) for name in names]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
