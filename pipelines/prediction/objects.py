"""The objects of a mask, numbered and measured strip by strip: pixels connected over edges or corners.

Pieces of a strip are joined with the pieces of the strip above that they touch. Objects are numbered in the reading
order of their first pixels, as in a mask that is held as a whole.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from unetpp.models.about import About
from unetpp.network.masks import find_classes


class Measured(NamedTuple):
    """An object of a mask: a row of measurements.csv, in pixels. The centre of the top left pixel is (0, 0)."""

    object: int  # its number, from 1 on; each label is numbered separately
    cls: str
    area_px: int
    centroid_x: float
    centroid_y: float
    left: int
    top: int
    width: int
    height: int


COLUMNS = tuple("class" if name == "cls" else name for name in Measured._fields)


class ObjectFinder:
    """The connected components (8 neighbours) of each class or label, except the background.

    Pass the strips of a mask to `add`, from top to bottom. After `close` the objects are known, and `number` takes the
    same strips again. Memory grows with the width of the image and the number of objects.
    """

    def __init__(self, about: About):
        self._about, self._places = about, {}

    def add(self, mask: np.ndarray, top: int = 0) -> None:
        """Add a strip (h, W) of a mask as `Predictor.mask` returns it, whose first row is row `top` of the image."""
        for number, place in self._classes(mask):
            self._places.setdefault(number, _Place()).add(place, top)

    def close(self) -> None:
        """Join the pieces to objects, after the last strip."""
        before = 0
        for _, place in sorted(self._places.items()):
            place.close(before)
            before = 0 if self._about.multilabel else before + place.count

    @property
    def most(self) -> int:
        """The largest number of any object, or 0."""
        return max((place.before + place.count for place in self._places.values()), default=0)

    def objects(self) -> Iterator[Measured]:
        """All objects, class by class."""
        about = self._about
        for number, place in sorted(self._places.items()):
            yield from place.objects(about.classes[number - 1] if about.multilabel else about.names[number])

    def number(self, mask: np.ndarray, top: int = 0) -> list[np.ndarray]:
        """The objects' numbers in a strip that was added: (h, W) int32 planes, one for all classes or one per label."""
        planes = [
            np.zeros(mask.shape, np.int32) for _ in range(self._about.num_classes if self._about.multilabel else 1)
        ]
        for number, place in self._classes(mask):
            plane = planes[number - 1 if self._about.multilabel else 0]
            plane[place] = self._places[number].number(place, top)[place]
        return planes

    def _classes(self, mask: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        return find_classes(mask, self._about.multilabel, self._about.background)


class _Place:
    """The pixels of a class or label: its pieces in each strip, then its objects."""

    def __init__(self):
        self.count = self.before = 0  # number of pieces, after `close` of objects; number of objects of earlier classes
        self._starts: dict[int, int] = {}  # number of pieces above, by a strip's first row
        self._pieces: list[np.ndarray] = []  # per strip (n, 7): area, sums of x and y, left, top, right, bottom
        self._touching: list[np.ndarray] = []  # per border (n, 2): pieces of the same object
        self._border: tuple[int, np.ndarray] = (-1, np.zeros(0, int))  # index of the row below a strip, its last row
        self._objects = np.zeros(0, int)  # the object of each piece, from 0 on

    def add(self, place: np.ndarray, top: int) -> None:
        pieces, start = _label(place), self.count
        self._starts[top] = start
        self._pieces.append(_measure(pieces, top))
        self.count += len(self._pieces[-1])
        if self._border[0] == top:
            self._touching.append(_touching(self._border[1], _shift(pieces[0], start)))
        self._border = top + len(place), _shift(pieces[-1], start)

    def close(self, before: int) -> None:
        from unetpp.scores.object_matching import join_pieces  # late: scipy, which masks do not need

        pairs = np.concatenate([np.zeros((0, 2), int), *self._touching]) - 1
        self._objects = join_pieces(pairs, self.count)
        pieces, self.before, self.count = np.concatenate(self._pieces), before, int(self._objects.max()) + 1
        merged = np.zeros((self.count, 7), np.int64)
        merged[:, 3:5] = np.iinfo(np.int64).max
        np.add.at(merged[:, :3], self._objects, pieces[:, :3])
        np.minimum.at(merged[:, 3:5], self._objects, pieces[:, 3:5])
        np.maximum.at(merged[:, 5:], self._objects, pieces[:, 5:])
        self._pieces = [merged]

    def objects(self, name: str) -> Iterator[Measured]:
        for index, row in enumerate(self._pieces[0]):
            area, sum_x, sum_y, left, top, right, bottom = row.tolist()
            x, y = round(sum_x / area, 2), round(sum_y / area, 2)
            number = self.before + index + 1
            yield Measured(number, name, area, x, y, left, top, right - left + 1, bottom - top + 1)

    def number(self, place: np.ndarray, top: int) -> np.ndarray:
        start = self._starts[top]
        pieces = _label(place)
        of = self._objects[start : start + int(pieces.max())] + self.before + 1
        return np.concatenate([[0], of])[pieces]


def _label(place: np.ndarray) -> np.ndarray:
    """The connected components of a plane (h, W) bool, numbered from 1 on."""
    from unetpp.scores.object_matching import Objects  # late: scipy, which masks do not need

    return Objects.of(place).numbers


def _shift(row: np.ndarray, start: int) -> np.ndarray:
    return np.where(row > 0, row.astype(np.int64) + start, 0)


def _touching(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Pairs (n, 2) of the numbers in two adjacent rows (W,) that touch over an edge or a corner."""
    width, found = len(above), []
    for shift in (-1, 0, 1):
        upper, lower = above[max(0, shift) : width + min(0, shift)], below[max(0, -shift) : width - max(0, shift)]
        both = (upper > 0) & (lower > 0)
        found.append(np.stack([upper[both], lower[both]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _measure(pieces: np.ndarray, above: int) -> np.ndarray:
    """(n, 7) area, sums of x and y, left, top, right, bottom of each piece of a strip (h, W) below `above` rows."""
    rows, columns = np.nonzero(pieces)
    which = pieces[rows, columns] - 1  # (n,) the piece of each pixel
    rows += above
    areas = np.bincount(which)
    found = np.zeros((len(areas), 7), np.int64)
    found[:, 0] = areas
    for axis, places in enumerate((columns, rows)):
        found[:, 1 + axis] = np.bincount(which, places)  # sums of whole numbers, exact up to 2^53
        found[:, 3 + axis] = np.iinfo(np.int64).max
        np.minimum.at(found[:, 3 + axis], which, places)
        np.maximum.at(found[:, 5 + axis], which, places)
    return found
