"""The objects of a mask and their sizes, counted so that sums over a whole dataset stay small and exact.

A size is the diameter of the disc of the same area ("equivalent diameter"), in px. Sizes are counted in bins of
a quarter octave: bin b contains the diameters from 2^(b/4) up to 2^((b+1)/4) px. A power of two is an edge, so that
the number of objects smaller than one is exact.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import cv2
import numpy as np

BINS_PER_OCTAVE = 4
# Numbered objects have runs of several pixels; the values of a smoothed edge have one or two.
THIN_RUN_PX = 1.5
FULL, FEW = (255, 65535), 128  # a full scale with fewer values is shades of one object, not numbers
MANY = 2**20
EXACT = 2**24  # OpenCV counts in float32


def find_objects(numbers: np.ndarray, mask: np.ndarray, one_each: bool) -> tuple[np.ndarray, str]:
    """Areas of the objects in px, and how they were separated.

    "each": each file or shape is one, of any class. "values": the mask numbers them. "components": touching pixels of
    one class, if the mask has one value per class, or values that do not number objects, as on a smoothed edge.
    """
    if one_each or mask.max(initial=0) <= 1:
        counts, numbered = count_numbers(numbers)
        if one_each or numbered:
            return counts, "each" if one_each else "values"
    areas = [np.zeros(0, np.int64)]
    for value in np.unique(mask[mask > 0]):
        _, _, stats, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=8)
        areas.append(stats[1:, cv2.CC_STAT_AREA].astype(np.int64))
    return np.concatenate(areas), "components"


def count_numbers(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """The pixels of each value above 0 of (H, W), in their order, and whether the values number objects.

    They do not if there is one value, or if they are shades: a smoothed edge, or a few values besides a full scale.
    """
    highest, numbers = values.max(initial=0), values
    if highest > MANY:  # a histogram would have too many zeros
        numbers = np.unique(values, return_inverse=True)[1].reshape(values.shape) + int(values.min() > 0)
    counts = histogram(numbers)
    present = np.flatnonzero(counts[1:]) + 1
    if len(present) < 2 or (highest in FULL and len(present) < FEW):
        return counts[present], False
    ends = np.ones(numbers.shape, bool)
    ends[:, :-1] = numbers[:, 1:] != numbers[:, :-1]
    runs = np.bincount(numbers[ends], minlength=len(counts))
    return counts[present], bool(np.median(counts[present] / runs[present]) >= THIN_RUN_PX)


def histogram(values: np.ndarray) -> np.ndarray:
    """(n,) int64: how often each whole number from 0 on occurs; OpenCV's is ten times as fast as NumPy's."""
    if values.dtype not in (np.uint8, np.uint16):
        return np.bincount(values.ravel())
    num_levels = int(np.iinfo(values.dtype).max) + 1
    counts = np.zeros(num_levels, np.int64)
    flat = np.ascontiguousarray(values).reshape(-1, 1)
    for start in range(0, len(flat), EXACT):
        piece = cv2.calcHist([flat[start : start + EXACT]], [0], None, [num_levels], [0, num_levels])
        counts += piece.reshape(-1).astype(np.int64)
    return counts


def diameters_px(areas: np.ndarray) -> np.ndarray:
    """Of discs of these areas in px."""
    return 2 * np.sqrt(areas / np.pi)


def mean_width_px(places: Iterable[np.ndarray]) -> float:
    """How wide the classes are, weighted by area: six times the mean distance of a pixel from other classes.

    This is the diameter of a disc, and one and a half times the width of a band of any length. Touching objects of a
    class count as one. 0 without foreground.

    Args:
        places: (H, W) bool of each class.
    """
    total, pixels = 0.0, 0
    for inside in places:
        framed = np.pad(inside, 1)  # an object ends where the image does
        distances = cv2.distanceTransform(framed.astype(np.uint8), cv2.DIST_L2, 3)
        total += float(distances.sum(dtype=np.float64))
        pixels += int(np.count_nonzero(inside))
    return 6 * max(0.0, total / pixels - 0.5) if pixels else 0.0  # distances count from the middle of a pixel


def count_sizes(diameters: np.ndarray) -> dict[int, int]:
    """Number of objects by bin (see BINS_PER_OCTAVE); what is smaller than a pixel is counted in bin 0."""
    bins = np.floor(BINS_PER_OCTAVE * np.log2(np.maximum(diameters, 1))).astype(int)
    return dict(sorted(Counter(bins.tolist()).items()))


def join(counts: Mapping[int, int]) -> str:
    """{1: 500, 3: 20} is "1:500 3:20", a cell of a CSV file."""
    return " ".join(f"{key}:{count}" for key, count in counts.items())


def add_up(cells: Iterable[str]) -> dict[int, int]:
    """The sum over cells that `join` wrote, sorted by key."""
    total: Counter[int] = Counter()
    for cell in cells:
        for pair in cell.split():
            key, _, count = pair.partition(":")
            total[int(key)] += int(count)
    return dict(sorted(total.items()))


def share_smaller(sizes: Mapping[int, int], depth: int) -> float:
    """The share of objects smaller than 2^depth px."""
    return sum(count for bin, count in sizes.items() if bin < BINS_PER_OCTAVE * depth) / max(1, sum(sizes.values()))


def size_quantile_px(sizes: Mapping[int, int], share: float) -> float:
    """The size that this share of the objects is smaller than, interpolated within its bin; 0 without objects."""
    wanted, below = share * sum(sizes.values()), 0
    for bin, count in sorted(sizes.items()):
        if below + count >= wanted and count:
            return 2 ** ((bin + (wanted - below) / count) / BINS_PER_OCTAVE)
        below += count
    return 0.0
