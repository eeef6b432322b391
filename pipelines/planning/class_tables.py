"""Names of mask values and colours: from tables that tools leave next to a set, and of well-known sets."""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

IGNORED = {"void", "ignore", "ignored", "__ignore__", "unlabeled", "unlabelled", "unknown", "not annotated"}
BACKGROUND = {"background", "_background_", "bg", "none", "other", "no label"}
NAMES = (
    "objectinfo150.txt",
    "_classes.csv",
    "class_dict.csv",
    "labelmap.txt",
    "label_colors.txt",
    "dataset.json",
    "id2label.json",
)
LINES = ("classes.txt", "class_names.txt", "labels.txt", "obj.names", "codes.txt")
MAX_BYTES = 2**20

VOC = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
CAMVID_11 = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
    "void",
]
CAMVID_COLOURS = {
    "#808080": "sky",
    "#800000": "building",
    "#c0c080": "pole",
    "#804080": "road",
    "#0000c0": "pavement",
    "#808000": "tree",
    "#c08080": "sign",
    "#404080": "fence",
    "#400080": "car",
    "#404000": "pedestrian",
    "#0080c0": "bicyclist",
    "#000000": "void",
}
CITYSCAPES = {  # the id of a class in the masks _labelIds, its colour, and its name; all others are not scored
    7: ("#804080", "road"),
    8: ("#f423e8", "sidewalk"),
    11: ("#464646", "building"),
    12: ("#66669c", "wall"),
    13: ("#be9999", "fence"),
    17: ("#999999", "pole"),
    19: ("#faaa1e", "traffic light"),
    20: ("#dcdc00", "traffic sign"),
    21: ("#6b8e23", "vegetation"),
    22: ("#98fb98", "terrain"),
    23: ("#4682b4", "sky"),
    24: ("#dc143c", "person"),
    25: ("#ff0000", "rider"),
    26: ("#00008e", "car"),
    27: ("#000046", "truck"),
    28: ("#003c64", "bus"),
    31: ("#005064", "train"),
    32: ("#0000e6", "motorcycle"),
    33: ("#770b20", "bicycle"),
}


@dataclass(frozen=True)
class Table:
    """Names by stored value or '#rrggbb', `background` and `ignore` among them, and where they are from."""

    names: Mapping[int | str, str]
    source: str


def role_of(name: str) -> str:
    """A name for prepare.values: one word each for background and void classes; others are valid folder names."""
    plain = name.strip().strip("'\"")
    if plain.casefold() in IGNORED:
        return "ignore"
    if plain.casefold() in BACKGROUND:
        return "background"
    return re.sub(r"[/\\]", "-", plain).lstrip(".") or "class"


def find_table(root: Path, names: Iterable[str]) -> Table | None:
    """The first table of classes among the files of a set, by relative name, the nearest to the root first."""
    listed = [name for name in names if Path(name).name.lower() in (*NAMES, *LINES)]
    for name in sorted(listed, key=lambda one: (one.count("/"), one)):
        path = root / name
        try:
            text = path.read_text(encoding="utf-8-sig") if path.stat().st_size <= MAX_BYTES else ""
            read = _read(path.name.lower(), text)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # another file of that name
            continue
        if len(read) > 1:
            if 0 not in read and 1 in read:
                read = {0: "background"} | read
            return Table({key: role_of(called) for key, called in read.items()}, name)
    return None


def colour(red: object, green: object, blue: object) -> str:
    return "#" + "".join(f"{int(str(one)):02x}" for one in (red, green, blue))


def voc_colour(number: int) -> str:
    """Of Pascal VOC's palette: the bits of a number, dealt to red, green and blue from the highest bit down."""
    parts = [sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
    return colour(*parts)


def _read(kind: str, text: str) -> dict[int | str, str]:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if kind.endswith(".json"):
        content = json.loads(text)
        found = content.get("labels", content)
        pairs = [(one, other) if str(one).isdecimal() else (other, one) for one, other in found.items()]
        return {int(number): str(name) for number, name in pairs if not isinstance(number, list)}
    if kind in LINES:
        start = -1 if lines and lines[0] == "__ignore__" else 0
        return {number: name for number, name in enumerate(lines, start) if number >= 0}
    if kind == "labelmap.txt":
        parts = [line.split(":") for line in lines]
        return {colour(*part[1].split(",")): part[0] for part in parts}
    if kind == "label_colors.txt":
        words = [line.split() for line in lines]
        return {colour(*row[:3]): " ".join(row[3:]) for row in words}
    if kind == "objectinfo150.txt":  # of ADE20K, whose masks have 0 where nothing is named
        cells = [line.split("\t") for line in lines[1:]]
        return {0: "ignore", **{int(row[0]): re.split("[,;]", row[-1])[0] for row in cells}}
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    if kind == "_classes.csv":
        return {int(row[0]): row[1] for row in rows[1:]}
    return {colour(*row[1:4]): row[0] for row in rows[1:]}


def known_table(values: Iterable[int | str], names: Iterable[str]) -> Table | None:
    """The table of a well-known set, told by the names of its files and the values that occur.

    Args:
        values: numbers, or colours as '#rrggbb'.
        names: relative names of the mask files.
    """
    values, names = set(values), [str(name) for name in names]
    colours = {value for value in values if isinstance(value, str)}
    if colours and len(colours & CAMVID_COLOURS.keys()) >= max(4, 0.8 * len(colours)):
        return Table({key: role_of(name) for key, name in CAMVID_COLOURS.items()}, "CamVid's colours")
    known = {code: name for code, name in CITYSCAPES.values()}
    if colours and len(colours & known.keys()) >= max(5, 0.5 * len(colours)):
        return Table({**dict.fromkeys(sorted(colours - known.keys()), "ignore"), **known}, "Cityscapes' colours")
    voc: dict[int | str, str] = {voc_colour(255): "ignore"}
    voc.update((voc_colour(number), name) for number, name in enumerate(VOC))
    if colours and colours <= voc.keys() and all("SegmentationClass" in name for name in names):
        return Table(voc, "Pascal VOC's colours")
    numbers = {value for value in values if isinstance(value, int)}
    if not numbers or not names:
        return None
    if all("_labelIds" in name for name in names):
        others = dict.fromkeys(sorted({*range(34)} - CITYSCAPES.keys()), "ignore")
        return Table({**others, **{key: name for key, (_, name) in CITYSCAPES.items()}}, "Cityscapes' numbers")
    if all("_labelTrainIds" in name for name in names) and numbers <= {*range(len(CITYSCAPES)), 255}:
        train: dict[int | str, str] = {number: name for number, (_, name) in enumerate(CITYSCAPES.values())}
        return Table({**train, 255: "ignore"}, "Cityscapes' train ids")
    if all("SegmentationClass" in name for name in names) and numbers <= {*range(21), 255}:
        return Table({**dict(enumerate(VOC)), 255: "ignore"}, "Pascal VOC's numbers")
    if all("annot/" in name for name in names) and numbers <= {*range(12)} and 11 in numbers and len(numbers) > 8:
        return Table({number: role_of(name) for number, name in enumerate(CAMVID_11)}, "CamVid's numbers (SegNet)")
    return None
