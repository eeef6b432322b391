"""What is said of a dataset whose names leave a doubt: what was found, and what to do about it."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from pipelines.storage.naming.folder_words import find_sides, read_part
from pipelines.storage.naming.templates import Layout, is_picture
from unetpp.errors import UserError
from unetpp.images.pictures import SUFFIXES

HOW = "set ingest.layout in params.yaml, or by `unetpp init ... -S`"
EXPECTED = (
    "expected images/<id>.<ext> with masks/<id>.png, or the BBBC038 layout <id>/images/<id>.png with "
    "<id>/masks/<one file per nucleus>.png, or images/ with COCO's annotations.json, or another layout of docs/data.md"
)
# Formats of other fields, which can be converted (docs/data.md has the lines).
CONVERTED = {".dcm": "DICOM", ".nii": "NIfTI", ".mha": "MetaImage", ".nrrd": "NRRD", ".npy": "NumPy", ".npz": "NumPy"}
CONVERTED |= {".h5": "HDF5", ".mat": "MATLAB", ".czi": "CZI", ".nd2": "ND2", ".svs": "SVS", ".jp2": "JPEG 2000"}
CONVERTED |= dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PNM")
DRAWN = {".txt": "YOLO", ".json": "LabelMe", ".xml": "XML"}  # a file of shapes next to each picture
OTHER = 'the few lines in docs/data.md, "Other formats"'


def check_readable(names: list[PurePosixPath], where: str) -> None:
    """Refuse a dataset in another format, with the name of that format."""
    pictures = [name for name in names if is_picture(name)]
    formats = {name: CONVERTED.get(PurePosixPath(name.name.lower().removesuffix(".gz")).suffix) for name in names}
    kinds = Counter(kind for kind in formats.values() if kind)
    if kinds and kinds.total() >= len(pictures):
        kind, number = kinds.most_common(1)[0]
        example = next(name for name in names if formats[name] == kind)
        raise UserError(
            f"{where}: found {number} {kind} files, such as {example}; expected {', '.join(SUFFIXES)}: save images "
            f"and masks as TIFF or PNG first, by {OTHER}"
        )
    stems = {name.stem for name in pictures} | {name.name for name in pictures}
    drawn = [name for name in names if name.stem in stems and name.suffix.lower() in DRAWN]
    drawn = [name for name in drawn if name.suffix.lower() != ".txt" or name.parent.name.lower() == "labels"]
    if drawn:
        kind = "Supervisely" if is_picture(PurePosixPath(drawn[0].stem)) else DRAWN[drawn[0].suffix.lower()]
        raise UserError(
            f"{where}: found {len(drawn)} {kind} files, such as {drawn[0]}, which describe shapes; expected masks as "
            "pictures, or one COCO file: export them as COCO or as masks, which every annotation tool supports"
        )
    lists = [name for name in names if name.suffix.lower() in (".txt", ".csv", ".lst")]
    if lists and len(lists) == len(names):
        raise UserError(
            f"{where}: found no pictures but {some(lists)}; expected the files themselves: if a list contains "
            f"addresses, fetch them: wget -x -nH -i {lists[0]}"
        )
    if not pictures:
        raise UserError(
            f"{where}: found {len(names)} files, such as {names[0]}, none of them a picture by its suffix; expected "
            f"{', '.join(SUFFIXES)}: save images and masks as one of these (DICOM, often without suffix: by {OTHER})"
        )


def no_pairs(names: list[PurePosixPath], where: str, beside: Iterable[PurePosixPath] = ()) -> UserError:
    """The error for names among which nothing pairs up, with what lies beside them."""
    check_readable(names, where)
    pictures, sides = [name for name in names if is_picture(name)], (("images", "masks"), ("masks", "images"))
    lacking = next((other for one, other in sides if all(one in name.parts for name in pictures)), None)
    what = f"{folders_of(names)} and no images/ in it, nor names that tell images from masks"
    told = f"{where}: found {f'no {lacking}/ folder with files' if lacking else what}; {EXPECTED}: "
    tables = [
        name
        for name in (*sorted(beside), *names)
        if name.suffix.lower() in (".csv", ".json", ".xml") and len(name.parts) < 3
    ]
    if tables:
        told += f"if {some(tables)} describes masks (run lengths, polygons), draw them first, by {OTHER}; else "
    if lacking:
        return UserError(f"{told}add the {lacking}, under the names of the others")
    return UserError(
        f"{told}rename the folders, or {HOW}, so that {{id}} is the same text for an image and its mask: "
        f"{_proposal(names)}"
    )


def check_channels(mask_of: Mapping[str, str], where: str) -> None:
    """Refuse channels in files of their own, as nnU-Net numbers them, which would be taken for images."""
    several = defaultdict(list)
    for id, mask in mask_of.items():
        if re.fullmatch(r"_000\d", id.removeprefix(mask)):
            several[mask].append(id)
    ids = max(several.values(), key=len, default=[])
    if len(ids) > 1:
        raise UserError(
            f"{where}: found {len(ids)} files with the mask of {ids[0]}, numbered as the channels of nnU-Net; expected "
            f"all channels of an image in one file: stack them in a TIFF, by {OTHER}, or {HOW} if each is an image"
        )


def folders_of(names: Iterable[PurePosixPath]) -> str:
    """The folders of pictures with their numbers and an example each."""
    pictures = [name for name in names if is_picture(name)]
    counts = Counter(name.parent for name in pictures)
    first = {name.parent: name for name in reversed(pictures)}
    shown = [f"{count} pictures in {folder}/ ({first[folder].name})" for folder, count in counts.most_common(5)]
    more = [f"{len(counts) - 5} more folders"] if len(counts) > 5 else []
    return ", ".join([*shown, *more]) or some(names)


def _proposal(names: Iterable[PurePosixPath]) -> str:
    """The line of ingest.layout for the images and masks that folders tell, or for the two largest folders."""
    names = list(names)
    sides = sorted(find_sides(names).items(), key=lambda item: -len(item[1].names))
    ours, theirs = ([item for item in sides if item[1].role == role][:1] for role in ("image", "mask"))
    for (images, one), (masks, other) in zip(ours, theirs, strict=False):
        image, mask = (min(rest for *_, rest in side.names) for side in (one, other))
        tail = mask.removeprefix(image) if mask.startswith(image) else ""
        head, _, end = image.rpartition("_")
        if head and mask.startswith(f"{head}_") and mask.endswith(f"_{end}") and len(mask) > len(image):
            middle = mask[len(head) : -len(end)]  # um_000000 and um_road_000000
            return Layout("pairs", f"{images}/{{folder}}_{{id}}", f"{masks}/{{folder}}{middle}{{id}}").line
        return Layout("pairs", f"{images}/{{id}}", f"{masks}/{{id}}{tail}").line
    counts = Counter(name.parent for name in names if is_picture(name))
    largest = sorted(
        (folder for folder, _ in counts.most_common(2)), key=lambda folder: read_part(folder.name).role == "mask"
    )
    folders = [f"{folder}/" if str(folder) != "." else "" for folder in largest]
    one, other = (*folders, "masks/", "masks/")[:2] if len(folders) != 1 else (folders[0], folders[0])
    tail = "_mask" if one == other else ""
    return Layout("pairs", f"{one}{{id}}", f"{other}{{id}}{tail}").line


def some(names: Iterable[object]) -> str:
    """The first five by name, and how many more."""
    names = [str(name) for name in names]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
