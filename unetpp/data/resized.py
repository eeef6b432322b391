"""Samples at the size that a network is trained at: image and mask are resized with the same geometry."""

from typing import TYPE_CHECKING

import numpy as np

from unetpp.images.frame import Frame, Size
from unetpp.images.pixels import resize
from unetpp.network.masks import IGNORE, find_classes, find_values

if TYPE_CHECKING:
    from unetpp.data.arrow_split import Split  # needs pyarrow, which `unetpp.fit` does not
    from unetpp.data.manifest import Manifest


class Resized:
    """A split at the images' own sizes, resized to what the network sees, without padding; unchanged for frame None."""

    def __init__(self, split: "Split", frame: Frame | None, num_classes: int, multilabel: bool = False):
        self.split, self.frame, self.task = split, frame, (num_classes, multilabel)

    @classmethod
    def of(cls, split: "Split", manifest: "Manifest") -> "Resized":
        """A split resized as in training with this manifest."""
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
    """Resize image (H, W, C) and mask (H, W) uint8 to a frame, with the same geometry (`resize_mask`)."""
    size = frame.sides(mask.shape)
    if mask.shape == size:
        return image, mask
    return resize(image, size), resize_mask(mask, size, num_classes, multilabel)


def resize_mask(mask: np.ndarray, size: Size, num_classes: int, multilabel: bool = False) -> np.ndarray:
    """Resize a mask (H, W) uint8 (unetpp.network.masks) to (height, width), with the geometry of images.

    OpenCV's nearest neighbour samples the corner of a pixel, and would shift a smaller mask by up to half a pixel
    against its image. So each class is resized like its image, as a share of each pixel. Then a pixel is IGNORE if half
    or more of it is IGNORE. Otherwise foreground, and each label, needs half of the known part of the pixel, and of
    several classes the largest share wins.
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
