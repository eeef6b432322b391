"""The position of training crops and the seeds of all draws, which depend only on seed, epoch, sample id and crop."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unetpp.images.frame import Size
from unetpp.network.masks import IGNORE, find_classes

Key = tuple[int, int, str] | tuple[int, int, int, str]  # seed, epoch, number of the crop above 0, sample id
NUM_SPOTS = 256  # pixels that are kept per class of an image


def draw_seeds(key: Key) -> tuple[int, ...]:
    """Eight independent 32-bit seeds, one for each quantity that is drawn."""
    digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return tuple(int.from_bytes(digest[start : start + 4], "big") for start in range(0, 32, 4))


def draw_exposure(key: Key, limit: float) -> tuple[float, float]:
    """Contrast and brightness of a sample, drawn for half of the samples; (1, 0), no change, for the others.

    Both are relative to the image: contrast about its mean, brightness in standard deviations. Images are standardised,
    so changes in shares of full scale or of the mean, hardly visible in a dim image, could exceed the whole contrast of
    a bright one, and training would see images that prediction never sees.
    """
    stream = random.Random(draw_seeds(key)[3])
    if limit == 0 or stream.random() >= 0.5:
        return 1.0, 0.0
    return 1 + stream.uniform(-limit, limit), stream.uniform(-limit, limit)


def find_spots(mask: np.ndarray, multilabel: bool = False, background: bool = True) -> list[np.ndarray]:
    """Foreground pixels of a mask (H, W) uint8: for each class in it, int32 flat indices of at most 256 pixels.

    If there are more, they are evenly spaced in reading order, so that large objects have more of them than small ones.
    """
    spots = []
    for _, inside in find_classes(mask, multilabel, background):
        places = np.flatnonzero(inside)
        if len(places) > NUM_SPOTS:
            places = places[(2 * np.arange(NUM_SPOTS) + 1) * len(places) // (2 * NUM_SPOTS)]
        spots.append(places.astype(np.int32))
    return spots


@dataclass(frozen=True)
class Crops:
    """Random square crops of image and mask, or whole images.

    If an image is smaller than the crop, it is mirrored at its edges, and that part of the mask is IGNORE.

    Args:
        size_px: side of a crop, or None for whole images.
        foreground: share of the crops that must contain foreground if their image has any: first a class is drawn
            among those present, then one of its spots (Isensee et al. 2021, nnU-Net, uses a third). The other crops
            are the same as for a share of 0.
        canvas: (height, width) to which whole images are padded at the bottom and right by repeating their edges, with
            IGNORE in the mask.
    """

    size_px: int | None
    foreground: float = 0.0
    canvas: Size | None = None

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, key: Key, spots: Sequence[np.ndarray] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut image (H, W, C) and mask (H, W) of any type; returns views unless they are padded.

        Args:
            spots: `find_spots` of the whole mask.
        """
        if self.size_px is None:
            if self.canvas in (None, mask.shape):
                return image, mask
            assert self.canvas is not None
            around = [(0, most - side) for most, side in zip(self.canvas, mask.shape, strict=True)]
            return _pad(image, mask, around, "edge")
        size = self.size_px
        # Pad half before and half after; an odd pixel goes after.
        before = tuple(max(0, size - side) // 2 for side in mask.shape)
        top, left = (place - pad for place, pad in zip(self._place(mask.shape, key, spots), before, strict=True))
        rows, columns = (slice(max(0, at), max(0, at) + size) for at in (top, left))
        if not any(side < size for side in mask.shape):
            return image[rows, columns], mask[rows, columns]
        around = [
            (pad, max(0, size - side - pad)) if side < size else (0, 0)
            for side, pad in zip(mask.shape, before, strict=True)
        ]
        return _pad(image[rows, columns], mask[rows, columns], around, "reflect")

    def _place(self, shape: tuple[int, ...], key: Key, spots: Sequence[np.ndarray]) -> tuple[int, int]:
        """Top and left of the crop in the padded image."""
        assert self.size_px is not None
        seeds = draw_seeds(key)
        draw = random.Random(seeds[0])
        # Always drawn, so that crops without required foreground are the same as for a share of 0.
        top, left = (int((max(side, self.size_px) - self.size_px + 1) * draw.random()) for side in shape)
        if self.foreground == 0 or not spots:
            return top, left
        draw = random.Random(seeds[1])
        if draw.random() >= self.foreground:
            return top, left
        places = spots[draw.randrange(len(spots))]
        spot = divmod(int(places[draw.randrange(len(places))]), shape[1])
        # All windows that contain the spot are equally likely, so that objects occur everywhere in a crop.
        return tuple(  # pyright: ignore[reportReturnType]
            draw.randint(max(0, at - self.size_px + 1), max(0, min(at, side - self.size_px)))
            for at, side in zip(spot, shape, strict=True)
        )


def _pad(
    image: np.ndarray, mask: np.ndarray, around: list[tuple[int, int]], how: Literal["edge", "reflect"]
) -> tuple[np.ndarray, np.ndarray]:
    return np.pad(image, [*around, (0, 0)], mode=how), np.pad(mask, around, constant_values=IGNORE)
