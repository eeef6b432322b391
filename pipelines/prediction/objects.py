"""The objects of a mask: what hangs together over edges or corners, numbered and measured."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from unetpp.models.about import About
from unetpp.network.masks import find_classes


class Measured(NamedTuple):
    """An object of a mask, as a row of measurements.csv. The middle of the top left pixel is 0, 0."""

    object: int  # its number, from 1 on; in each label by itself
    cls: str
    area_px: int
    centroid_x: float
    centroid_y: float
    left: int
    top: int
    width: int
    height: int


COLUMNS = tuple("class" if name == "cls" else name for name in Measured._fields)


def find_objects(mask: np.ndarray, about: About) -> tuple[list[np.ndarray], list[Measured]]:
    """The connected components (8 neighbours) of each class or label that counts.

    Args:
        mask: (H, W) as `Predictor.mask` gives it.

    Returns:
        planes (H, W) int32 of objects' numbers, one for all classes, or one for each label; and the objects.
    """
    from unetpp.scores.object_matching import Objects  # late: scipy, which masks do not need

    num_planes = about.num_classes if about.multilabel else 1
    planes = [np.zeros(mask.shape, np.int32) for _ in range(num_planes)]
    rows: list[Measured] = []
    for number, place in find_classes(mask, about.multilabel, about.background):
        plane = planes[number - 1 if about.multilabel else 0]
        before = int(plane.max())
        numbers = Objects.of(place).numbers
        name = about.classes[number - 1] if about.multilabel else about.names[number]
        rows += _measure(numbers, name, before)
        plane[place] = numbers[place] + before
    return planes, rows


def _measure(numbers: np.ndarray, name: str, before: int) -> Iterator[Measured]:
    """The objects of one plane, which are numbered on from `before`."""
    rows, columns = np.nonzero(numbers)
    which = numbers[rows, columns] - 1  # (n,) of each pixel
    areas = np.bincount(which)
    centroids = [np.bincount(which, places) / areas for places in (columns, rows)]
    first, last = (np.zeros((2, len(areas)), int) for _ in range(2))
    for axis, places in enumerate((columns, rows)):
        first[axis] = max(numbers.shape)
        np.minimum.at(first[axis], which, places)
        np.maximum.at(last[axis], which, places)
    for index, area in enumerate(areas.tolist()):
        x, y = (round(float(one[index]), 2) for one in centroids)
        (left, top), (right, bottom) = first[:, index].tolist(), last[:, index].tolist()
        yield Measured(before + index + 1, name, area, x, y, left, top, right - left + 1, bottom - top + 1)
