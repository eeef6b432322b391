"""Samples at the size that a network is trained at: an image and its mask by one geometry."""

from typing import TYPE_CHECKING

import numpy as np

from unetpp.images.frame import Frame, Size
from unetpp.images.pixels import resize
from unetpp.network.masks import IGNORE, find_classes, find_values

if TYPE_CHECKING:
    from unetpp.data.arrow_split import Split  # pyarrow, which `unetpp.fit` does without
    from unetpp.data.manifest import Manifest


class Resized:
    """A split at the images' own sizes, seen as the network sees it, without padding; as it is for None."""

    def __init__(self, split: "Split", frame: Frame | None, num_classes: int, multilabel: bool = False):
        self.split, self.frame, self.task = split, frame, (num_classes, multilabel)

    @classmethod
    def of(cls, split: "Split", manifest: "Manifest") -> "Resized":
        """As the data of this manifest are trained on."""
        return cls(split, manifest.frame, manifest.num_classes, manifest.multilabel)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) uint8, uint16 or float32 and mask (H, W) uint8."""
        image, mask = self.split[index]
        return (image, mask) if self.frame is None else resize_sample(image, mask, self.frame, *self.task)

    def shape(self, index: int) -> tuple[int, int, int]:
        """(H, W, C) of a sample's image."""
        height, width, channels = self.split.shape(index)
        return (*(self.frame.sides((height, width)) if self.frame else (height, width)), channels)


def resize_sample(
    image: np.ndarray, mask: np.ndarray, frame: Frame, num_classes: int, multilabel: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, C) and mask (H, W) uint8 to the size of a frame by one geometry (`resize_mask`)."""
    size = frame.sides(mask.shape)
    if mask.shape == size:
        return image, mask
    return resize(image, size), resize_mask(mask, size, num_classes, multilabel)


def resize_mask(mask: np.ndarray, size: Size, num_classes: int, multilabel: bool = False) -> np.ndarray:
    """A mask (H, W) uint8 (unetpp.network.masks) to (height, width), by the geometry in which images are resized.

    OpenCV's nearest neighbour samples the corner of a pixel, and would lay a smaller mask up to half a pixel
    beside its image. So each class is resized as its image is, as a share of each pixel, and then decided: a pixel of
    which half or more is IGNORE stays that; else the foreground, and each label, takes half of what is known of the
    pixel, and of several classes the largest share wins.
    """
    present = find_values(mask)

    def share(inside: np.ndarray) -> np.ndarray:
        return resize(inside.astype(np.float32), size)

    unknown = share(mask == IGNORE) if IGNORE in present else np.zeros(size, np.float32)
    present = present[present != IGNORE]
    if multilabel or num_classes == 1:
        least = np.float32(0.5) * (1 - unknown)
        small = np.zeros(size, np.uint8)
        for number, inside in find_classes(mask, multilabel):
            small |= (share(inside) >= least) * np.uint8(1 << number - 1)
    elif len(present):
        small = present[np.stack([share(mask == value) for value in present]).argmax(axis=0)].astype(np.uint8)
    else:
        small = np.zeros(size, np.uint8)
    small[unknown >= 0.5] = IGNORE
    return small
