"""The measures of all images in two tables: a row for each object, and the number of objects for each class."""

from collections.abc import Iterable
from pathlib import Path

from pipelines.core.tables import read_rows, write_rows
from pipelines.prediction.objects import COLUMNS
from unetpp.models.about import About

OBJECTS, COUNTS = "measurements.csv", "counts.csv"


def write_tables(folder: Path, stems: Iterable[str], about: About) -> None:
    """Write both from the tables of the images, `measurements/<stem>.csv`."""
    rows: list[dict[str, str]] = []
    counts: list[tuple[str, str, int, int]] = []
    for stem in stems:
        found = read_rows(folder / "measurements" / f"{stem}.csv")
        rows += found
        for name in about.classes:
            areas = [int(row["area_px"]) for row in found if row["class"] == name]
            counts.append((stem, name, len(areas), sum(areas)))
    write_rows(folder / OBJECTS, ("image", *COLUMNS), rows)
    write_rows(folder / COUNTS, ("image", "class", "num_objects", "area_px"), counts)
