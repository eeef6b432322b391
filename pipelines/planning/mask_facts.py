"""What the masks of a set contain, whatever it means: values or colours, their shapes and neighbours."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from pipelines.dataset.object_sizes import histogram
from unetpp.images.pictures import Limits, Picture, read_picture

FEW = 64  # most values of a mask whose shapes and neighbours are examined
LOOKED_AT = 150  # most masks that are examined like this
MANY = 4096  # with more colours it is a photograph, not a mask
STEP = 32  # between colours that are told apart in a lossy mask


@dataclass
class MaskFacts:
    """Of one mask, or added up over several. Values are numbers, or '#rrggbb' where the mask is in colours."""

    num: int = 0
    lossy: int = 0  # masks in a lossy format
    pixels: Counter = field(default_factory=Counter)  # by value
    images: Counter = field(default_factory=Counter)  # that have a value
    runs: Counter = field(default_factory=Counter)  # in rows, of one value
    framed: Counter = field(default_factory=Counter)  # pixels on the frame
    central: Counter = field(default_factory=Counter)  # pixels of the middle quarter of the image
    beside: Counter = field(default_factory=Counter)  # (one, other): how often the two touch
    looked_at: int = 0  # masks examined for the following
    pieces: Counter = field(default_factory=Counter)  # connected parts
    shaped: Counter = field(default_factory=Counter)  # images that have a value, of these
    highest: list[int] = field(default_factory=list)  # of each mask that has more than 0
    dense: int = 0  # masks of which the values are 0, 1 ... n, each in one piece, or nearly

    @property
    def values(self) -> list:
        return sorted(self.pixels, key=lambda one: (isinstance(one, str), one))

    @property
    def total(self) -> int:
        return self.pixels.total()

    @property
    def coloured(self) -> bool:
        return any(isinstance(value, str) for value in self.pixels)

    def share(self, value: int | str) -> float:
        return self.pixels[value] / max(1, self.total)

    def run(self, value: int | str) -> float:
        """The mean length of a run of this value in a row, px."""
        return self.pixels[value] / max(1, self.runs[value])

    def pieces_each(self, value: int | str) -> float:
        """Connected parts of an image that has the value."""
        return self.pieces[value] / max(1, self.shaped[value])

    def touch(self, one: int | str, other: int | str) -> int:
        return self.beside[one, other] + self.beside[other, one]


def add_up(paths: Iterable[tuple[Path, int | None]], limits: Limits) -> MaskFacts:
    """The facts of these mask files (and pages); unreadable files are left to stage prepare.

    The grey of a file that says that 0 is white is taken as it is stored.
    """
    facts = MaskFacts()
    for path, page in paths:
        try:
            picture = read_picture(path, page, limits)
        except (ValueError, OSError):
            continue
        _add(facts, picture)
    return facts


def _add(facts: MaskFacts, picture: Picture) -> None:
    names, numbers = _numbered(picture)
    if names is None:
        return
    facts.num += 1
    facts.lossy += picture.lossy
    counts = np.bincount(numbers.ravel(), minlength=len(names))
    ends = np.ones(numbers.shape, bool)
    ends[:, :-1] = numbers[:, 1:] != numbers[:, :-1]
    runs = np.bincount(numbers[ends], minlength=len(names))
    height, width = numbers.shape
    frame = np.concatenate([numbers[0], numbers[-1], numbers[1:-1, 0], numbers[1:-1, -1]])
    middle = numbers[height // 4 : height - height // 4, width // 4 : width - width // 4]
    for counter, found in (
        (facts.pixels, counts),
        (facts.runs, runs),
        (facts.framed, np.bincount(frame, minlength=len(names))),
        (facts.central, np.bincount(middle.ravel(), minlength=len(names))),
    ):
        counter.update({names[index]: int(found[index]) for index in np.flatnonzero(found)})
    facts.images.update(names)
    above = [name for name in names if name]
    if above and not isinstance(names[0], str):
        facts.highest.append(int(max(above)))
    if 1 < len(names) <= FEW and facts.looked_at < LOOKED_AT:
        facts.looked_at += 1
        _add_neighbours(facts, numbers, names)
        pieces = {names[index]: _count_pieces(numbers == index) for index in range(len(names))}
        facts.pieces.update(pieces)
        single = sum(pieces[name] == 1 for name in above)
        facts.shaped.update(names)
        facts.dense += bool(above) and single >= 0.85 * len(above) and _is_dense(above)
    elif above:
        facts.dense += _is_dense(above)


def _is_dense(values: list) -> bool:
    """Whether they number things from 1 on, with a gap here and there."""
    return not isinstance(values[0], str) and min(values) == 1 and len(values) >= 0.9 * max(values)


def _numbered(picture: Picture) -> tuple[list | None, np.ndarray]:
    """The values of a mask, and (H, W) of their places in that list; None if it is a photograph, not a mask."""
    pixels = picture.pixels
    colours = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
    if colours.dtype.kind == "f":
        if not np.isfinite(colours).all() or (colours != np.floor(colours)).any():
            return None, pixels
        colours = colours.astype(np.int64)
    if colours.shape[2] == 1 or not (colours != colours[:, :, :1]).any():
        grey = colours[:, :, 0]
        if grey.dtype not in (np.uint8, np.uint16):
            values, numbers = np.unique(grey, return_inverse=True)
            return values.tolist(), numbers.reshape(grey.shape)
        present = np.flatnonzero(histogram(grey))  # many times as fast
        places = np.zeros(int(present[-1]) + 1, np.int64)
        places[present] = np.arange(len(present))
        return present.tolist(), places[grey]
    wide = colours.astype(np.int64)
    if picture.lossy:
        wide = np.minimum((wide + STEP // 2) // STEP * STEP, 255)
    codes = (wide[:, :, 0] << 16) + (wide[:, :, 1] << 8) + wide[:, :, 2]
    values, numbers = np.unique(codes, return_inverse=True)
    if len(values) > MANY or colours.dtype != np.uint8:
        return None, pixels
    return [f"#{value:06x}" for value in values.tolist()], numbers.reshape(colours.shape[:2])


def _count_pieces(inside: np.ndarray) -> int:
    return cv2.connectedComponents(inside.astype(np.uint8), connectivity=8)[0] - 1


def _add_neighbours(facts: MaskFacts, numbers: np.ndarray, names: list) -> None:
    num = len(names)
    for one, other in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):
        pairs = np.bincount((one * num + other).ravel(), minlength=num * num)
        for index in np.flatnonzero(pairs):
            first, second = divmod(int(index), num)
            if first != second:
                facts.beside[names[first], names[second]] += int(pairs[index])
