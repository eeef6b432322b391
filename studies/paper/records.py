"""The study's results on disk: a table for each protocol and recipe, a row for each run and depth.

A run's cells that hold for all of its depths (`FACTS`) stand in the first of its rows. `images` is the foreground IoU
of each test image, `patches` how many of them in succession are patches of one image.
"""

import csv
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipelines.core.files import replacing

RESULTS = Path(__file__).parent / "results"
SCORES = ("iou_image", "iou_pixels", "iou_paper", "dice_image", "dice_pixels", "dice_paper", "parameters", "macs")
FACTS = ("train_loss", "epochs", "trained_s", "rim_share", "test_sha256", "machine", "params", "widths", "patches")


class Run(NamedTuple):
    """One training within a protocol and recipe."""

    scale: str
    network: str
    seed: int


def table_of(protocol: str, recipe: str) -> Path:
    return RESULTS / protocol / f"{recipe}.csv"


def read(protocol: str, recipe: str) -> dict[Run, dict]:
    """What was found in each run of a table, as `run.measure` returns it; nothing where there is no table."""
    path = table_of(protocol, recipe)
    found: dict[Run, dict] = {}
    if not path.exists():
        return found
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            facts = {name: json.loads(row[name]) for name in FACTS if row[name]}
            run = found.setdefault(Run(row["scale"], row["network"], int(row["seed"])), {"depths": {}, "images": {}})
            run |= facts
            run["depths"][row["depth"]] = {name: json.loads(row[name]) for name in SCORES if row[name]}
            run["images"][row["depth"]] = [float(one) for one in row["images"].split()]
    return found


def add(protocol: str, recipe: str, run: Run, found: dict) -> None:
    """Put a run into its table, whole or not at all; several processes may add to it."""
    path = table_of(protocol, recipe)
    with _alone(path):
        _write(path, read(protocol, recipe) | {run: found})


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        yield


def _write(path: Path, runs: dict[Run, dict]) -> None:
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [*Run._fields, "depth", *SCORES, *FACTS, "images"], lineterminator="\n")
        table.writeheader()
        for run, found in sorted(runs.items()):
            facts = {name: json.dumps(found[name], separators=(",", ":")) for name in FACTS if name in found}
            for depth, scores in found["depths"].items():
                numbers = {name: round(value, 7) for name, value in scores.items()}
                images = " ".join(f"{one:.5g}" for one in found["images"][depth])
                table.writerow(run._asdict() | {"depth": depth} | numbers | facts | {"images": images})
                facts = {}


def read_test(protocol: str) -> tuple[list[str], list[float]] | None:
    """Kind, and IoU of the best threshold, of each test image of a protocol; None where nobody looked yet."""
    path = RESULTS / protocol / "test.csv"
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["kind"] for row in rows], [float(row["best_threshold"]) for row in rows]


def write_test(protocol: str, kinds: list[str], best_threshold: list[float]) -> None:
    """Keep what `read_test` reads."""
    with (
        replacing(RESULTS / protocol / "test.csv") as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["kind", "best_threshold"])
        table.writerows(zip(kinds, best_threshold, strict=True))
