"""Whether images have a top and a bottom: a linear classifier tries to tell them from their mirrored copies.

It learns on one half of the images and is tested on the other, so that without a difference about half are right.
For photographs (of any scene) it is right far more often, for nuclei it is not (benchmarks/plan.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from unetpp.network.masks import IGNORE, find_classes

SIDE, CELLS = 64, 4  # px to which images are resized, and cells per side
MAX_CLASSES = 12
RIDGE = 1.0
TOLD = 0.62  # share of images told from their copies that is more than chance
HINTED, TURNED = 0.55, 0.03  # less is enough if rotated copies are told apart too
SIDEWAYS = 0.8
DEVIATIONS = 2.5  # standard deviations of chance, which matters more with few images
LEAST = 12  # images


@dataclass(frozen=True)
class Orientation:
    """Shares of images that are told from their copies."""

    num: int
    mirrored: float  # top and bottom exchanged
    turned: float  # rows and columns exchanged

    @property
    def limit(self) -> float:
        """What chance seldom reaches."""
        return max(TOLD, 0.5 + DEVIATIONS * 0.5 / max(1, self.num) ** 0.5)

    @property
    def upright(self) -> bool | None:
        """Whether images have a top and a bottom; None if there are too few to tell."""
        if self.num < LEAST:
            return None
        both = (self.mirrored + self.turned) / 2
        hinted = self.mirrored > HINTED and both > self.limit + TURNED and not self.sideways
        return self.mirrored > self.limit or hinted

    @property
    def sideways(self) -> bool:
        """Whether rows differ from columns, as in scans or images with a top and a bottom."""
        return self.turned > SIDEWAYS


def look_at(image: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    """(features, CELLS, CELLS) of an image (H, W, C) and its mask (H, W)."""
    small = cv2.resize(image.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA).reshape(SIDE, SIDE, -1)
    small = (small - small.min()) / max(1e-6, float(np.ptp(small)))
    light = small.mean(axis=2)
    down, across = np.gradient(light)
    planes = [light, np.ptp(small, axis=2), small[:, :, -1] - small[:, :, 0], np.abs(across), np.abs(down)]
    places = dict(find_classes(np.where(mask == IGNORE, 0, mask)))
    for number in range(1, max(2, min(num_classes, MAX_CLASSES))):
        inside = places.get(number, np.zeros(mask.shape, bool)).astype(np.float32)
        planes.append(cv2.resize(inside, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    cell = SIDE // CELLS
    return np.stack(planes).reshape(-1, CELLS, cell, CELLS, cell).mean(axis=(2, 4))


def find_orientation(looks: Iterable[np.ndarray]) -> Orientation:
    """The orientation of many images by their features (`look_at`), in the order of their ids."""
    listed = list(looks)
    if len(listed) < LEAST:
        return Orientation(len(listed), 0.5, 0.5)
    upright = np.stack(listed)  # (N, features, CELLS, CELLS)
    turned = upright.swapaxes(2, 3).copy()
    turned[:, [3, 4]] = turned[:, [4, 3]]  # gradients turn with the image
    return Orientation(len(upright), _told(upright - upright[:, :, ::-1]), _told(upright - turned))


def _told(differences: np.ndarray) -> float:
    """The share of images that are told from copies, from the differences between the two."""
    rows = differences.reshape(len(differences), -1).astype(np.float64)
    rows = rows[:, rows.any(axis=0)]
    if not rows.size:
        return 0.5
    right = []
    for half in range(2):
        seen, others = rows[half::2], rows[1 - half :: 2]
        scale = seen.std(axis=0) + 1e-3 * rows.std()
        seen = seen / scale
        ridge = RIDGE * np.eye(seen.shape[1])
        weights = np.linalg.solve(seen.T @ seen / len(seen) + ridge, seen.mean(axis=0))
        right.append(float(np.mean((others / scale) @ weights > 0)))
    return sum(right) / 2
