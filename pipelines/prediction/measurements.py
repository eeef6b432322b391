"""Measurements of all images in two tables: one row per object, and the number of objects per image and class."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.core.tables import each_row, write_rows
from pipelines.prediction.objects import COLUMNS
from unetpp.models.about import About

OBJECTS, COUNTS = "measurements.csv", "counts.csv"


def write_tables(folder: Path, stems: Iterable[str], about: About) -> None:
    """Write both tables from those of the single images, `measurements/<stem>.csv`."""
    counts: list[tuple[str, str, int, int]] = []

    def rows() -> Iterator[dict[str, str]]:
        for stem in stems:
            found = {name: [0, 0] for name in about.classes}
            for row in each_row(folder / "measurements" / f"{stem}.csv"):
                found[row["class"]][0] += 1
                found[row["class"]][1] += int(row["area_px"])
                yield row
            counts.extend((stem, name, num, area) for name, (num, area) in found.items())

    write_rows(folder / OBJECTS, ("image", *COLUMNS), rows())
    write_rows(folder / COUNTS, ("image", "class", "num_objects", "area_px"), counts)
