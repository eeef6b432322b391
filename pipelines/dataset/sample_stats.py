"""The facts of one sample, computed when it is decoded, and samples.csv, with a row for each sample.

The whole data report is made from these rows; no image is read a second time for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.core.tables import read_rows, write_rows
from pipelines.dataset.mask_files import Labels
from pipelines.dataset.object_sizes import count_sizes, diameters_px, find_objects, histogram, join, mean_width_px
from unetpp.errors import UserError
from unetpp.images.pictures import Header
from unetpp.network.masks import IGNORE, find_classes

Samples = dict[str, np.ndarray]  # samples.csv by column


class Facts(NamedTuple):
    """Facts of a sample, of the original file unless stated otherwise. Pairs are in the format of `join`."""

    format: str
    mode: str
    bits: int  # per channel
    channels: int
    grey: int  # 1 if all channels are equal
    height: int
    width: int
    low: float  # the image's values, in the units of the file: minimum, percentiles, maximum
    p1: float
    median: float
    p99: float
    high: float
    foreground_px: int
    foreground_share: float  # of the labelled pixels
    prepared_foreground_px: int
    ignored_px: int
    overlap_px: int
    shades_px: int  # of the foreground, below the highest value, if values do not number objects
    classes: str  # number and pixels of each class or label
    num_objects: int
    objects_by: str  # how they were separated, see `find_objects`
    object_px_min: float  # diameters
    object_px_median: float
    object_px_max: float
    width_px: float  # of the classes, weighted by area: a disc's diameter, a band's width and half of it
    scale: float  # of lengths, by resizing
    sizes: str  # bin and number of objects
    prepared_sizes: str

    @property
    def numbered(self) -> bool:
        """The mask numbers its objects."""
        return self.objects_by != "components"


TEXT = ("id", "split", "kind", *(name for name, kind in Facts.__annotations__.items() if kind is str))


def describe(
    header: Header,
    image: np.ndarray,
    labels: Labels,
    prepared: np.ndarray,
    multilabel: bool = False,
    background: bool = True,
) -> Facts:
    """The facts of a sample.

    Args:
        header: of the image's file.
        image: (H, W, C) as decoded, before any resizing.
        labels: the mask, at the size of the image.
        prepared: the prepared mask, which may be smaller.
        multilabel, background: the meaning of masks (unetpp.network.masks); without background all is foreground.
    """
    mask = labels.mask
    height, width = mask.shape
    ignored = int(np.count_nonzero(mask == IGNORE))
    places = dict(find_classes(mask, multilabel, background))
    foreground = _count_foreground(mask, background)
    areas, counted_by = _find_objects(labels, places, multilabel, background)
    diameters = diameters_px(areas)
    scale = float(np.sqrt(prepared.size / mask.size))
    smallest, middle, largest = (one(diameters) if len(areas) else 0.0 for one in (np.min, np.median, np.max))
    low, p1, median, p99, high = _intensity(image, (0, 0.01, 0.5, 0.99, 1))
    return Facts(
        **header._asdict(),
        grey=int(not (image != image[:, :, :1]).any()),
        height=height,
        width=width,
        low=low,
        p1=p1,
        median=median,
        p99=p99,
        high=high,
        foreground_px=foreground,
        foreground_share=rounded(foreground / max(1, mask.size - ignored)),
        prepared_foreground_px=_count_foreground(prepared, background),
        ignored_px=ignored,
        overlap_px=labels.overlap_px,
        shades_px=labels.shades_px,
        classes=join({number: int(np.count_nonzero(inside)) for number, inside in places.items()}),
        num_objects=len(areas),
        objects_by=counted_by,
        object_px_min=rounded(smallest),
        object_px_median=rounded(middle),
        object_px_max=rounded(largest),
        width_px=rounded(mean_width_px(places.values())),
        scale=rounded(scale),
        sizes=join(count_sizes(diameters)),
        prepared_sizes=join(count_sizes(diameters * scale)),
    )


def _count_foreground(mask: np.ndarray, background: bool) -> int:
    return int(np.count_nonzero((mask >= int(background)) & (mask != IGNORE)))


def check_foreground(splits: Mapping[str, Sequence[Facts]], ignore: int | None, no_foreground: str) -> None:
    """Refuse a split without foreground: a model that finds nothing would score 1 on it.

    Raises:
        UserError: a split without foreground, or a dataset in which all drawn pixels have the value `ignore`.
    """
    facts = [one for each in splits.values() for one in each]
    ignored = sum(one.ignored_px for one in facts)
    if ignored and not any(one.foreground_px for one in facts):
        key = "prepare.values" if ignore is None else f"prepare.ignore, {ignore}"
        raise UserError(
            f"{key}: found {ignored:,} ignored pixels and no other foreground in any mask, so that nothing is left to "
            "learn; expected a value that marks unlabelled pixels: name it as a class if it marks the foreground"
        )
    bare = [split for split, each in splits.items() if not any(one.prepared_foreground_px for one in each)]
    if bare and no_foreground == "refuse":
        counts = ", ".join(f"{split} ({len(splits[split])} images)" for split in bare)
        raise UserError(
            f"prepare.no_foreground: found no foreground pixel in {counts}; expected some in each of train, val and "
            "test, as otherwise nothing is learned, or a model that finds nothing scores 1.000: add labelled images, "
            "set other prepare.shares or another prepare.salt, or set prepare.no_foreground to allow"
        )


def _find_objects(
    labels: Labels, places: dict[int, np.ndarray], multilabel: bool, background: bool
) -> tuple[np.ndarray, str]:
    """`find_objects` of the mask, or of each label separately, as labels may overlap."""
    if not background:  # 0 is a class like the others
        mask = np.where(labels.mask == IGNORE, 0, labels.mask + np.uint8(1))
        return find_objects(mask, mask, one_each=False)
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
    """The quantiles of the image's values at these shares, in the units of the file."""
    if image.dtype.kind in "ui" and image.dtype.itemsize <= 2:
        counts = histogram(image).cumsum()
        ranks = np.maximum(1, np.ceil(np.array(shares) * counts[-1]))
        return np.searchsorted(counts, ranks).tolist()
    finite = image[np.isfinite(image)].astype(np.float64)
    if not finite.size:
        return [0.0] * len(shares)
    return [rounded(value) for value in np.quantile(finite, shares, method="inverted_cdf")]


def rounded(value: float | np.floating) -> float:
    """Six digits: enough for a table or JSON, and the same on every machine."""
    return float(f"{value:.6g}")


def write_samples(path: Path, rows: Iterable[tuple]) -> None:
    """samples.csv of rows (id, split, kind, facts ...), in the order given."""
    write_rows(path, ("id", "split", "kind", *Facts._fields), rows)


def read_samples(path: Path) -> Samples:
    """samples.csv by column: numbers as float64, text as objects."""
    rows = read_rows(path)
    return {
        name: np.array([row[name] for row in rows], dtype=object if name in TEXT else np.float64)
        for name in (rows[0] if rows else ())
    }
