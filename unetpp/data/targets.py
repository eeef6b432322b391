"""Boundary and distance of the objects of a sample, made after crops, turns and zooms: at the size that a network sees.

Until then the numbers of the objects travel in the bits above the mask's eight, and are moved as the mask is. Flips and
quarter turns change neither boundary nor distance, and come after.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unetpp.data.crops import Crops, Key
from unetpp.data.instances import MOST
from unetpp.data.warp import Warp
from unetpp.errors import UserError, to_install
from unetpp.network.masks import IGNORE, find_classes
from unetpp.network.targets import join


class Numbered:
    """A split whose masks number their objects: (H, W) uint32; without numbers a sample has its mask of uint8."""

    def __init__(self, split):
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getattr__(self, name: str):
        if name == "split":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.split, name)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) and mask."""
        image, mask = self.split[index]
        numbers = self.split.instances(index)
        return image, mask if numbers is None else numbers.astype(np.uint32) << 8 | mask


class WithTargets(Numbered):
    """A split whose masks are `make_targets` of whole images."""

    def __init__(self, split, background: bool = True):
        super().__init__(split)
        self.background = background

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = super().__getitem__(index)
        return image, make_targets(mask, self.background)


@dataclass(frozen=True)
class CropsWithTargets:
    """Crops (`unetpp.data.crops`, `unetpp.data.warp`) whose masks are `make_targets` of what was cut."""

    crops: Crops | Warp
    background: bool = True

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, key: Key, spots: Sequence[np.ndarray] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self.crops(image, mask, key, spots)
        return image, make_targets(mask, self.background)


def number_objects(mask: np.ndarray, background: bool = True) -> np.ndarray:
    """Numbers (H, W) int32 from 1 on of the connected pixels (8 neighbours) of each class in a mask, 0 elsewhere."""
    cv2 = _opencv()
    numbers, count = np.zeros(mask.shape, np.int32), 0
    for _, inside in find_classes(mask, background=background):
        found, own = cv2.connectedComponents(inside.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        numbers[inside] = own[inside] + count
        count += found - 1
    return numbers


def make_targets(numbered: np.ndarray, background: bool = True) -> np.ndarray:
    """What a network for instances is to learn of a mask, as `unetpp.network.targets.join` joins it: (H, W) int32.

    - Boundary: pixels of an object that have a pixel of another object or of the background among their 8 neighbours.
    - Distance: from such a pixel, and one more, as a share of the object's largest; 0 outside of objects.
    - Neither is known where the mask is IGNORE, nor on foreground that no number names. What lies beyond the image, or
      is not known, ends no object.

    Args:
        numbered: (H, W) uint32, the numbers of the objects above the mask's 8 bits; or a mask uint8 alone, of which
            connected pixels of a class are an object.
    """
    cv2 = _opencv()
    mask = numbered.astype(np.uint8)
    numbers = number_objects(mask, background) if numbered.dtype == np.uint8 else (numbered >> 8).astype(np.int32)
    ignored = mask == IGNORE
    numbers[ignored] = 0
    inside = numbers > 0
    places = numbers.astype(np.float32)  # of which OpenCV finds the greatest and the least around; exact to 24 bits
    square = np.ones((3, 3), np.uint8)
    greatest = cv2.dilate(np.where(ignored, np.float32(-1), places), square)
    least = cv2.erode(np.where(ignored, np.float32(MOST), places), square)
    boundary = inside & ((greatest != places) | (least != places))
    distance = np.zeros(mask.shape, np.float32)
    if boundary.any():
        # Whoever leaves an object steps on its boundary first, so that no other object's is nearer.
        away = cv2.distanceTransform((~boundary).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[inside] + 1
        of = numbers[inside]
        largest = np.zeros(int(of.max()) + 1, np.float32)
        np.maximum.at(largest, of, away)
        distance[inside] = away / largest[of]
    else:
        distance[inside] = 1
    known = ~ignored & (inside | (mask == 0))
    return join(mask, boundary, distance, known)


def _opencv():
    try:
        import cv2  # late: masks are learnt without
    except ImportError:
        raise UserError(
            "opencv-python-headless is not installed; expected it to train a network with the targets boundary and "
            f"distance: {to_install('instances')}"
        ) from None
    return cv2
