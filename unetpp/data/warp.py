"""Rotation and zoom of a training crop, which depend only on (seed, epoch, sample id)."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unetpp.data.crops import Crops, Key, draw_seeds
from unetpp.images.pixels import by_channels


@dataclass(frozen=True)
class Warp:
    """A crop that is rotated about its centre and zoomed in half of the cases; image and mask move together.

    Areas from outside the crop are filled by mirroring at its edges. Pixels keep their type; mask values are moved,
    never interpolated.

    Args:
        crops: cuts the crop first.
        rotate: limit of the angle, in degrees; 0 for none.
        zoom: limit of the factor, drawn log-uniformly between 1 / zoom and zoom; 1 for none.
    """

    crops: Crops
    rotate: float = 0.0
    zoom: float = 1.0

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, key: Key, spots: Sequence[np.ndarray] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Crops`: image (H, W, C) uint8, uint16 or float32, and mask (H, W) of any type."""
        image, mask = self.crops(image, mask, key, spots)
        stream = random.Random(draw_seeds(key)[5])
        if (self.rotate == 0 and self.zoom == 1) or stream.random() >= 0.5:
            return image, mask
        angle = math.radians(stream.uniform(-self.rotate, self.rotate))
        factor = math.exp(stream.uniform(-1, 1) * math.log(self.zoom))
        return warp(image, mask, angle, factor)


def warp(image: np.ndarray, mask: np.ndarray, angle: float, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, C) and mask (H, W), rotated counter-clockwise by `angle` radians and enlarged `factor` times."""
    import cv2  # late: training without rotation and zoom only needs torch and numpy

    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), math.degrees(angle), factor)

    def move(pixels: np.ndarray, how: int) -> np.ndarray:
        moved = cv2.warpAffine(
            np.ascontiguousarray(pixels), matrix, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT_101
        )
        return moved.reshape(pixels.shape)  # OpenCV drops the axis of a single channel

    # Byte by byte: OpenCV supports few types, and nearest neighbour works on the bytes of any type.
    packed = np.ascontiguousarray(mask).view(np.uint8).reshape(*mask.shape, mask.itemsize)
    planes = [move(packed[..., byte], cv2.INTER_NEAREST) for byte in range(mask.itemsize)]
    moved = by_channels(lambda part: move(part, cv2.INTER_LINEAR), image)
    return moved, np.stack(planes, axis=-1).view(mask.dtype).reshape(mask.shape)
