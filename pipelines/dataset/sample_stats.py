"""The facts of one sample, found where it is decoded, and samples.csv, which keeps a row of them for each.

All that the data report says of a set is made of these rows; no image is read a second time for it.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipelines.dataset.mask_files import Labels
from pipelines.dataset.object_sizes import count_sizes, diameters_px, find_objects, histogram, join
from unetpp.images.decode import Header
from unetpp.network.masks import IGNORE, find_classes

Samples = dict[str, np.ndarray]  # samples.csv by column
TEXT = ("id", "split", "kind", "format", "mode", "objects_by", "classes", "sizes", "prepared_sizes")


def describe(
    header: Header, image: np.ndarray, labels: Labels, prepared: np.ndarray, multilabel: bool = False
) -> dict[str, str | int | float]:
    """The facts of a sample, one row of samples.csv but for id, split and kind.

    Args:
        header: of the image's file.
        image: (H, W, 3) as decoded, before any resizing.
        labels: the mask, at the size of the image.
        prepared: the mask as it is prepared, which may be smaller.
        multilabel: masks hold bits of labels (unetpp.network.masks).
    """
    mask = labels.mask
    height, width = mask.shape
    ignored = int(np.count_nonzero(mask == IGNORE))
    places = dict(find_classes(mask, multilabel))
    pixels = {number: int(np.count_nonzero(inside)) for number, inside in places.items()}
    foreground = int(np.count_nonzero(mask)) - ignored
    areas, counted_by = _find_objects(labels, places, multilabel)
    diameters = diameters_px(areas)
    scale = float(np.sqrt(prepared.size / mask.size))
    low, p1, median, p99, high = _intensity(image, (0, 0.01, 0.5, 0.99, 1))
    return {
        "format": header.format,
        "mode": header.mode,
        "bits": header.bits,
        "channels": header.channels,
        "grey": int(not (image != image[:, :, :1]).any()),
        "height": height,
        "width": width,
        "low": low,
        "p1": p1,
        "median": median,
        "p99": p99,
        "high": high,
        "foreground_px": foreground,
        "foreground_share": rounded(foreground / max(1, mask.size - ignored)),
        "prepared_foreground_px": int(np.count_nonzero((prepared > 0) & (prepared != IGNORE))),
        "ignored_px": ignored,
        "overlap_px": labels.overlap_px,
        "classes": join(pixels),
        "num_objects": len(areas),
        "objects_by": counted_by,
        "object_px_min": rounded(diameters.min(initial=np.inf)) if len(areas) else 0.0,
        "object_px_median": rounded(np.median(diameters)) if len(areas) else 0.0,
        "object_px_max": rounded(diameters.max(initial=0)),
        "scale": rounded(scale),
        "sizes": join(count_sizes(diameters)),
        "prepared_sizes": join(count_sizes(diameters * scale)),
    }


def _find_objects(labels: Labels, places: dict[int, np.ndarray], multilabel: bool) -> tuple[np.ndarray, str]:
    """`find_objects` of the mask, or of each label by itself, as those of several may lie over each other."""
    if not multilabel:
        mask = labels.mask if labels.mask.max(initial=0) < IGNORE else np.where(labels.mask == IGNORE, 0, labels.mask)
        return find_objects(labels.numbers, mask, labels.one_each)
    found = [
        find_objects(labels.numbers[label - 1], inside.astype(np.uint8), labels.one_each)
        for label, inside in places.items()
    ]
    ways = {way for _, way in found}
    areas = np.concatenate([np.zeros(0, np.int64), *(areas for areas, _ in found)])
    return areas, ways.pop() if len(ways) == 1 else "components"


def _intensity(image: np.ndarray, shares: tuple[float, ...]) -> list[int | float]:
    """The values below or at which these shares of all numbers of the image lie, in the units of the file."""
    if image.dtype.kind in "ui" and image.dtype.itemsize <= 2:
        counts = histogram(image).cumsum()
        ranks = np.maximum(1, np.ceil(np.array(shares) * counts[-1]))
        return np.searchsorted(counts, ranks).tolist()
    finite = image[np.isfinite(image)].astype(np.float64)
    if not finite.size:
        return [0.0] * len(shares)
    return [rounded(value) for value in np.quantile(finite, shares, method="inverted_cdf")]


def rounded(value: float | np.floating) -> float:
    """Six digits: what a table or JSON needs, and the same on every machine."""
    return float(f"{value:.6g}")


def write_samples(path: Path, names: Iterable[str], rows: Iterable[tuple]) -> None:
    """samples.csv from the names of the facts and rows (id, split, kind, facts ...), in the order given."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "split", "kind", *names))
        writer.writerows(rows)


def read_samples(path: Path) -> Samples:
    """samples.csv by column: numbers as float64, text as objects."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        names = next(reader)
        columns: list[list[str]] = [[] for _ in names]
        for row in reader:
            for column, cell in zip(columns, row, strict=True):
                column.append(cell)
    return {
        name: np.array(column, dtype=object if name in TEXT else np.float64)
        for name, column in zip(names, columns, strict=True)
    }
