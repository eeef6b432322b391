"""What each test image scored at each depth: images.csv, which stage evaluate writes and the registry keeps."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unetpp.errors import UserError

SCORES = {"iou": "IoU", "boundary_f1": "Boundary F1", "object_f1": "Object F1"}  # columns of images.csv, then _L1 ...


@dataclass(frozen=True)
class Scored:
    """What one depth scored, by image id; an image without a score is in none of that score."""

    depth: str  # "L1", "L2" ... or "mean"
    iou: Mapping[str, float]
    boundary_f1: Mapping[str, float]
    object_f1: Mapping[str, float]
    groups: Mapping[str, str]  # of every image; "" for one without
    test_sha256: str | None = None  # of the test images, where it is known


def read_scored(path: Path, test_sha256: str | None = None) -> dict[str, Scored]:
    """images.csv by depth, in its order.

    Raises:
        UserError: no such file, or none that evaluate wrote.
    """
    scores: dict[str, dict[str, dict[str, float]]] = {}  # by depth, by score, by image
    groups: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                groups[row["id"]] = row.get("group") or ""
                for column, text in row.items():
                    score, _, depth = column.rpartition("_")
                    if score in SCORES:
                        found = scores.setdefault(depth, {one: {} for one in SCORES})[score]
                        if text and math.isfinite(value := float(text)):
                            found[row["id"]] = value
    except (OSError, ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); expected what `dvc repro evaluate` writes") from None
    if not any(found["iou"] for found in scores.values()):
        raise UserError(f"{path}: found no column iou_L1, iou_L2 ...; expected the images.csv of the evaluate stage")
    return {depth: Scored(depth, **found, groups=groups, test_sha256=test_sha256) for depth, found in scores.items()}


def read_depth(path: Path, depth: int, test_sha256: str | None = None) -> Scored:
    """One depth of `read_scored`.

    Raises:
        UserError: as `read_scored`, or it has no such depth.
    """
    found = read_scored(path, test_sha256)
    if f"L{depth}" not in found:
        raise UserError(f"{path}: found {', '.join(found)}; expected L{depth}: run `dvc repro evaluate`")
    return found[f"L{depth}"]
