"""The scores of each test image at each depth: images.csv, which stage evaluate writes and the registry keeps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.core.tables import read_rows
from unetpp.errors import UserError

# Columns of images.csv, followed by _L1 ...
SCORES = {"iou": "IoU", "boundary_f1": "Boundary F1", "object_f1": "Object F1", "ap": "Average precision"}
OF_OBJECTS = ("object_f1", "ap")  # reports may differ in the definition of an object (`report_schema.Objects`)


@dataclass(frozen=True)
class Scored:
    """The scores of one depth by image id; an image without a score is missing there."""

    depth: str  # "L1", "L2" ... or "mean"
    iou: Mapping[str, float]
    boundary_f1: Mapping[str, float]
    object_f1: Mapping[str, float]
    groups: Mapping[str, str]  # of every image; "" without a group
    test_sha256: str | None = None  # of the test images, if known
    sizes: Mapping[str, str] = field(default_factory=dict)  # "HxW" at which each was scored; not in earlier reports
    ap: Mapping[str, float] = field(default_factory=dict)  # of true objects, if any; not in earlier reports

    def common(self, other: "Scored") -> list[str]:
        """The images on which both were scored at the same size, sorted; scores at different sizes do not compare."""
        both = self.iou.keys() & other.iou.keys()
        return sorted(id for id in both if self.sizes.get(id) == other.sizes.get(id))


def read_scored(path: Path, test_sha256: str | None = None) -> dict[str, Scored]:
    """images.csv by depth, in its order.

    Raises:
        UserError: no such file, or not one that stage evaluate wrote.
    """
    scores: dict[str, dict[str, dict[str, float]]] = {}  # by depth, by score, by image
    groups: dict[str, str] = {}
    sizes: dict[str, str] = {}
    try:
        for row in read_rows(path):
            groups[row["id"]] = row.get("group", "")
            if "height" in row:
                sizes[row["id"]] = f"{row['height']}x{row['width']}"
            for column, text in row.items():
                score, _, depth = column.rpartition("_")
                if score in SCORES:
                    found = scores.setdefault(depth, {one: {} for one in SCORES})[score]
                    if text and math.isfinite(value := float(text)):
                        found[row["id"]] = value
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); `dvc repro evaluate` writes it") from None
    if not any(found["iou"] for found in scores.values()):
        raise UserError(f"{path}: found no columns iou_L1, iou_L2 ...; expected the images.csv of the evaluate stage")
    return {
        depth: Scored(depth, **found, groups=groups, test_sha256=test_sha256, sizes=sizes)
        for depth, found in scores.items()
    }


def read_depth(path: Path, depth: int, test_sha256: str | None = None) -> Scored:
    """One depth of `read_scored`.

    Raises:
        UserError: as `read_scored`, or it has no such depth.
    """
    found = read_scored(path, test_sha256)
    if f"L{depth}" not in found:
        raise UserError(f"{path}: found {', '.join(found)}; expected L{depth}: run `dvc repro evaluate`")
    return found[f"L{depth}"]
