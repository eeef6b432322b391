"""Which layout a tree of files has and which files belong to it, by their names only.

So a dataset is known before it is fetched: every source asks here which files to fetch.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pipelines.storage.naming import refusals
from pipelines.storage.naming.folder_words import read_part
from pipelines.storage.naming.recognition import find_coco, recognise, recognise_suffixes
from pipelines.storage.naming.refusals import EXPECTED, HOW, folders_of, some
from pipelines.storage.naming.templates import SPLIT_OF, Layout, composed, find_files, is_picture
from unetpp.errors import UserError
from unetpp.images.pictures import SUFFIXES

# Of macOS, Windows, the root of a disk, and of network storage, whose folders contain thumbnails.
JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini", "lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir"}
THUMBNAILS = {"thumbs", "thumbnail", "thumbnails"}
FOLDERS = {"images", "masks", "annotations"}
# Tables and lists of a dataset's splits and class names.
TABLES = {"split", "splits", "metadata", "_classes", "classes", "class_dict", "labelmap", "label_colors", "codes"}


def is_junk(name: PurePosixPath) -> bool:
    """Hidden files and system files, anywhere in a relative path."""
    return any(part.startswith(".") or part in JUNK for part in name.parts)


def is_list(name: PurePosixPath) -> bool:
    """Whether it is named as a list of a split (train.txt), or a table of splits or classes."""
    stem, suffix = name.stem.lower(), name.suffix.lower()
    return (suffix in (".txt", ".lst") and stem in {*SPLIT_OF, "trainval"}) or (
        suffix in (".csv", ".txt") and stem in TABLES
    )


def is_annotations(name: PurePosixPath) -> bool:
    """Whether it is named as a COCO file: annotations.json, annotations/<name>.json, Roboflow's, or one in the
    root with coco or instances in its name."""
    low = name.name.casefold()
    in_folder = len(name.parts) == 2 and name.parts[0] == "annotations" and low.endswith(".json")
    named = low.endswith(".json") and len(name.parts) == 1 and re.search(r"(?<![^\W_])(coco|instances)(?![^\W_])", low)
    return str(name) == "annotations.json" or in_folder or low == "_annotations.coco.json" or bool(named)


def select(names: Iterable[PurePosixPath], layout: Layout) -> tuple[set[PurePosixPath], list[str]]:
    """The files of a dataset of this layout: images, masks, annotations, lists. And sentences on what is left out."""
    names = list(names)
    lists = {name for name in names if is_list(name)}
    if layout.kind == "pairs":
        found = find_files(names, layout)
        files = [*found.images.values(), *found.masks.values(), *found.more.values()]
        return lists | {name for same in files for name in same}, found.left_out
    pictures = [name for name in names if is_picture(name)]
    if layout.kind == "coco":
        annotations = {name for name in names if is_annotations(name)}
        is_image = layout.patterns[0]
        return lists | annotations | {one for one in pictures if is_image.fullmatch(composed(str(one)))}, []
    return lists | {one for one in pictures if len(one.parts) == 3 and one.parts[1] in ("images", "masks")}, []


def list_names(root: Path) -> list[PurePosixPath]:
    """Relative names of all files under `root`, a folder of our own, without junk, sorted."""
    names = (PurePosixPath(path.relative_to(root).as_posix()) for path in root.rglob("*") if not path.is_dir())
    return sorted(name for name in names if not is_junk(name))


def check_names(
    names: list[PurePosixPath], where: str, given: Layout | None = None, beside: Iterable[PurePosixPath] = ()
) -> Layout:
    """The layout of these relative names, which must include at least one image and one mask or annotation file.

    Args:
        given: by ingest.layout; if None, it is recognised.
        beside: files next to the folder that wraps these.

    Raises:
        UserError: names `where`, what was found, what was expected.
    """
    if not names:
        raise UserError(f"{where}: found no files; {EXPECTED}")
    if given is not None:
        return _check_given(names, where, given)
    heads = {name.parts[0] for name in names if len(name.parts) > 1}
    annotations = [name for name in names if is_annotations(name)]
    if "images" in heads and "masks" not in heads and annotations:
        _check_folders(names, where, ("images",), 0)
        return Layout("coco", find_coco(names))
    if {"images", "masks"} <= heads and annotations:
        raise UserError(
            f"{where}: found masks/ and also {some(annotations)}, so it may be pairs or COCO; expected one of the "
            "two: move the one that does not count out of the folder"
        )
    inner = {(name.parts[0], name.parts[1]) for name in names if len(name.parts) > 2}
    samples = {head for head, folder in inner if folder == "images"}
    splits = all(read_part(head).split for head in samples)
    is_bbbc038 = not heads & {"images", "masks"} and not splits and any((head, "masks") in inner for head in samples)
    if is_bbbc038 and not _have_several(names):
        _check_folders(names, where, ("images", "masks"), 1)
        return Layout("bbbc038")
    found = recognise(names) or recognise_suffixes(names)
    if {"images", "masks"} <= heads:
        _check_folders(names, where, ("images", "masks"), 0)
        plain = [one.layout for one in found if one.layout.images[:7] + one.layout.masks[:6] == "images/masks/"]
        return plain[0] if len(plain) == 1 else Layout("pairs")
    if not found and annotations and any(map(is_picture, names)):
        return Layout("coco", find_coco(names))
    if len(found) == 1:
        refusals.check_channels(find_files(names, found[0].layout).mask_of, where)
        return found[0].layout
    if found:
        lines = [f"\n  {one.layout.line}   # {one.num_pairs} pairs" for one in found[:8]]
        raise UserError(
            f"{where}: found {folders_of(names)}, which can be read in {len(found)} ways; expected one: {HOW}:"
            f"{''.join(lines)}"
        )
    raise refusals.no_pairs(names, where, beside)


def _check_folders(names: list[PurePosixPath], where: str, folders: Iterable[str], level: int) -> None:
    for wanted in folders:
        inside = [name for name in names if len(name.parts) > level + 1 and name.parts[level] == wanted]
        if not any(is_picture(name) for name in inside):
            refusals.check_readable(names, where)
            found = f"no image file in {wanted}/ but {some(inside)}" if inside else f"no {wanted}/ folder with files"
            raise UserError(f"{where}: found {found}; {EXPECTED}, where <ext> is one of {', '.join(SUFFIXES)}")


def _check_given(names: list[PurePosixPath], where: str, given: Layout) -> Layout:
    found = find_files(names, given)
    for what, template, files in (("images", given.images, found.images), ("masks", given.masks, found.masks)):
        if not files:
            raise UserError(
                f"{where}: found {folders_of(names)}, and none that matches ingest.layout for {what}: {template!r}; "
                "expected names relative to the root, without suffix, with {id}: correct it"
            )
    if not found.mask_of:
        image, mask = min(found.images), min(found.masks)
        raise UserError(
            f"{where}: found no image with a mask by ingest.layout: the first image has the id {image!r} and the first "
            f"mask {mask!r}; expected equal ids: correct its templates"
        )
    return given


def _have_several(names: Iterable[PurePosixPath]) -> bool:
    """Whether each folder with images/ has several: folders of patients or plates, not samples of BBBC038."""
    images = [name for name in names if len(name.parts) > 2 and name.parts[1] == "images" and is_picture(name)]
    counts = Counter(name.parts[0] for name in images)
    return bool(counts) and all(count > 1 for count in counts.values())


def choose(
    names: Iterable[PurePosixPath], where: str, given: Layout | None = None
) -> tuple[Layout, dict[PurePosixPath, PurePosixPath]]:
    """The layout of a source, and the files of the dataset: by name in the dataset, the name at the source.

    Folders that wrap everything are removed, and bytes that are not UTF-8 are written as %E9. The number of other
    files, which are left out, is printed.

    Raises:
        UserError: as `check_names`, or two files would get the same name.
    """
    names = sorted(names)
    prefix = _wrapper(names)
    inner = _inside(names, prefix)
    if given is not None and not find_files(inner, given).mask_of:  # its templates may include the outermost folder
        inner = _inside(names, PurePosixPath())
    layout = check_names(list(inner), where, given, set(names) - set(inner.values()))
    chosen, left_out = select(inner, layout)
    kept = {name: original for name, original in inner.items() if name in chosen}
    for sentence in left_out:
        print(f"ingest: {sentence}")
    if len(kept) < len(names):
        taken = set(kept.values())
        other = next(name for name in names if name not in taken)
        others = len(names) - len(kept)
        what = "1 file that does" if others == 1 else f"{others} files that do"
        print(f"left out {what} not belong to the dataset, such as {_spelled(str(other))}")
    spelled: dict[PurePosixPath, PurePosixPath] = {}
    foreign = 0
    for name, original in kept.items():
        written = PurePosixPath(_spelled(str(name)))
        foreign += written != name
        if (other := spelled.setdefault(written, original)) != original:
            raise UserError(f"{where}: found {str(other)!r} and {str(original)!r}, which get the same name; rename one")
    if foreign:
        print(f"{foreign} names are not UTF-8: their other bytes are written as %E9 and the like")
    return layout, spelled


def _inside(names: Iterable[PurePosixPath], prefix: PurePosixPath) -> dict[PurePosixPath, PurePosixPath]:
    """The names under a folder, by their names relative to it; without thumbnails."""
    return {
        name.relative_to(prefix): name
        for name in names
        if name.is_relative_to(prefix) and name != prefix and not THUMBNAILS & {part.lower() for part in name.parts}
    }


def _spelled(name: str) -> str:
    """A name in which bytes that are not UTF-8 (surrogates in Python) are escaped, to write it anywhere."""
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)


def _wrapper(names: Iterable[PurePosixPath]) -> PurePosixPath:
    """The nested folders that wrap everything, or `.` if the top level is the data."""
    prefix, inner = PurePosixPath(), list(names)
    while True:
        heads = {name.parts[0] for name in inner if len(name.parts) > 1}
        head = min(heads, default="")
        # A single BBBC038 sample looks like a wrapper around pairs; its image has the folder's name.
        single = any(name.parts[:2] == (head, "images") and name.stem == head for name in inner)
        if len(heads) != 1 or heads & FOLDERS or single:
            return prefix
        prefix /= head
        inner = [name.relative_to(head) for name in inner if len(name.parts) > 1]
