"""Separate touching objects with a watershed, for networks that predict boundaries and distances.

The energy of a pixel is distance * (1 - boundary), slightly smoothed: high in the middle of an object and low at its
edge. Each region where it reaches `seed` starts an object, which grows downhill until it meets another object or the
edge of the mask (the watershed of Vincent and Soille 1991, by scikit-image). A connected part of the mask in which no
pixel reaches `seed` is one object.
"""

from collections.abc import Iterable

import numpy as np

from unetpp.errors import UserError, to_install
from unetpp.inference.tiles import to_mask
from unetpp.models.about import Separation
from unetpp.network.masks import find_classes

# The values to try; of equally good ones the first wins. A step of 0.1 misses up to two points of AP (DSB2018, val).
SEEDS = (0.35, 0.4, 0.3, 0.45, 0.25, 0.5, 0.2, 0.6)
SMOOTH_PX = 1.0  # sigma. Without smoothing, seeds break up: a step of 0.05 in `seed` costs 4 points of AP, not 2
SMALLEST_PX = (12, 1, 40, 120)


def separate(
    probs: np.ndarray,
    num_classes: int,
    separation: Separation,
    threshold: float = 0.5,
    background: bool = True,
) -> np.ndarray:
    """The objects of an image, numbered from 1 on in reading order of their first pixels: (H, W) int32, 0 for none.

    Each object lies within one class. Labels, which may overlap, cannot be separated.

    Args:
        probs: (num_classes + 2, H, W): probabilities of the classes, of boundary, and distance.
        num_classes: channels of the mask.
        separation: the settings of the watershed.
        threshold, background: as in `tiles.to_mask` and `find_classes`.

    Raises:
        UserError: scikit-image is not installed.
    """
    numbers = _grow(probs, num_classes, separation.seed, threshold, background)
    areas = np.bincount(numbers.ravel())
    places = np.arange(numbers.size)[::-1]
    first = np.zeros(len(areas), int)
    first[numbers.ravel()[::-1]] = places  # of equal numbers the last write wins: the first pixel
    kept = np.flatnonzero(areas >= separation.smallest_px)
    kept = kept[kept > 0]
    names = np.zeros(len(areas), np.int32)
    names[kept[np.argsort(first[kept])]] = np.arange(1, len(kept) + 1)
    return names[numbers]


def choose_separation(
    images: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int, threshold: float = 0.5, background: bool = True
) -> Separation:
    """The values of SEEDS and SMALLEST_PX with the highest mean average precision over images (`Matches`).

    Classes are not distinguished.

    Args:
        images: probs as for `separate`, and the true object of each pixel, (H, W) from 1 on, 0 for none, below 0 if
            unknown: these pixels are left out.
    """
    from unetpp.scores.object_matching import Objects, find_pairs  # late: scipy

    found = []
    for probs, true in images:
        numbered = Objects.of_numbers(np.maximum(true, 0))
        row = []
        for seed in SEEDS:
            hat = Objects.of_numbers(np.where(true < 0, 0, _grow(probs, num_classes, seed, threshold, background)))
            pairs = find_pairs(hat, numbered)
            row.append([pairs.match(smallest_px).average_precision for smallest_px in SMALLEST_PX])
        found.append(row)
    if not found:
        return Separation(SEEDS[0], SMALLEST_PX[0])
    means = np.mean(found, axis=0).round(9)  # (seeds, sizes); rounded, so that rounding errors decide nothing
    seed, smallest_px = np.unravel_index(means.argmax(), means.shape)
    return Separation(SEEDS[seed], SMALLEST_PX[smallest_px])


def _grow(probs: np.ndarray, num_classes: int, seed: float, threshold: float, background: bool) -> np.ndarray:
    """All objects, however small, (H, W) int32, in any order."""
    try:
        from skimage.filters import gaussian
        from skimage.segmentation import watershed  # late: masks need neither it nor scipy

        from unetpp.scores.object_matching import Objects
    except ImportError:
        raise UserError(
            "scikit-image or scipy is not installed; a model with the targets boundary and distance needs both: "
            f"{to_install('instances')}, or request only the mask"
        ) from None
    mask = to_mask(probs[None], num_classes, threshold=threshold)[0]
    boundary, distance = probs[num_classes], probs[num_classes + 1]
    energy = gaussian(distance * (1 - boundary), SMOOTH_PX)
    numbers, count = np.zeros(mask.shape, np.int32), 0
    for _, place in find_classes(mask, background=background):
        markers = Objects.of(place & (energy >= seed)).numbers
        parts = Objects.of(place).numbers
        bare = np.bincount(parts.ravel(), markers.ravel() > 0) == 0
        markers = np.where(bare[parts] & place, markers.max() + parts, markers)
        grown = watershed(-energy, markers, connectivity=2, mask=place)  # 8 neighbours
        numbers[place] = grown[place] + count
        count = int(numbers.max(initial=0))
    return numbers
