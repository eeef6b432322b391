"""Boundary and distance of the objects of a sample, computed after crop, rotation and zoom, at the network's size.

Until then the object numbers are stored in the bits above the mask's eight, and are moved with the mask. Flips and
quarter turns come later, because they change neither boundary nor distance.
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
    """A split whose masks include object numbers, (H, W) uint32; a sample without numbers has its uint8 mask."""

    def __init__(self, split):
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getattr__(self, name: str):
        if name == "split":  # during unpickling
            raise AttributeError(name)
        return getattr(self.split, name)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) and mask."""
        image, mask = self.split[index]
        numbers = self.split.instances(index)
        return image, mask if numbers is None else numbers.astype(np.uint32) << 8 | mask


class WithTargets(Numbered):
    """A split whose masks are the `make_targets` of whole images."""

    def __init__(self, split, background: bool = True):
        super().__init__(split)
        self.background = background

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = super().__getitem__(index)
        return image, make_targets(mask, self.background)


@dataclass(frozen=True)
class CropsWithTargets:
    """Crops (`unetpp.data.crops`, `unetpp.data.warp`) whose masks are the `make_targets` of the crop."""

    crops: Crops | Warp
    background: bool = True

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, key: Key, spots: Sequence[np.ndarray] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self.crops(image, mask, key, spots)
        return image, make_targets(mask, self.background)


def number_objects(mask: np.ndarray, background: bool = True) -> np.ndarray:
    """Number the connected pixels (8 neighbours) of each class in a mask: (H, W) int32 from 1 on, 0 elsewhere."""
    cv2 = _opencv()
    numbers, count = np.zeros(mask.shape, np.int32), 0
    for _, inside in find_classes(mask, background=background):
        found, own = cv2.connectedComponents(inside.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        numbers[inside] = own[inside] + count
        count += found - 1
    return numbers


def make_targets(numbered: np.ndarray, background: bool = True) -> np.ndarray:
    """The targets of a network for instances, packed by `unetpp.network.targets.join`: (H, W) int32.

    - Boundary: pixels of an object with another object or the background among their 8 neighbours.
    - Distance: the distance from the nearest such pixel, plus one, as a share of the object's maximum; 0 outside of
      objects.
    - Both are unknown where the mask is IGNORE, and on foreground without a number. The edge of the image and unknown
      pixels are not boundaries.

    Args:
        numbered: (H, W) uint32 with the object numbers above the mask's 8 bits; or only a mask uint8, in which
            connected pixels of a class are an object.
    """
    cv2 = _opencv()
    mask = numbered.astype(np.uint8)
    numbers = number_objects(mask, background) if numbered.dtype == np.uint8 else (numbered >> 8).astype(np.int32)
    ignored = mask == IGNORE
    numbers[ignored] = 0
    inside = numbers > 0
    places = numbers.astype(np.float32)  # for OpenCV's local maximum and minimum; exact up to 24 bits
    square = np.ones((3, 3), np.uint8)
    greatest = cv2.dilate(np.where(ignored, np.float32(-1), places), square)
    least = cv2.erode(np.where(ignored, np.float32(MOST), places), square)
    boundary = inside & ((greatest != places) | (least != places))
    distance = np.zeros(mask.shape, np.float32)
    if boundary.any():
        # A path out of an object crosses its own boundary first, so no other object's boundary is nearer.
        away = cv2.distanceTransform((~boundary).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[inside] + 1
        of = numbers[inside]
        largest = np.zeros(int(of.max()) + 1, np.float32)
        np.maximum.at(largest, of, away)
        edged = np.zeros(len(largest), bool)  # others, with unlabelled pixels all around, would be measured to these
        edged[numbers[boundary]] = True
        distance[inside] = np.where(edged[of], away / largest[of], 1)
    else:
        distance[inside] = 1
    known = ~ignored & (inside | (mask == 0))
    return join(mask, boundary, distance, known)


def _opencv():
    try:
        import cv2  # late: networks of masks do not need it
    except ImportError:
        raise UserError(
            "opencv-python-headless is not installed; training with the targets boundary and distance needs it: "
            f"{to_install('instances')}"
        ) from None
    return cv2
