"""Augmentation with albumentations, which depends only on (seed, epoch, sample id).

albumentations 2.0.8, the last MIT release, gives every loader process the same random stream, and
`Compose.set_random_seed` gives every step of a pipeline the same one: hue would change exactly when brightness
does. Here each step of each sample has its own seed, derived from the sample's key, so that the draw does not depend on
the number of processes, the order, or a restart. Only this file imports albumentations.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from unetpp.data.crops import Crops, Key, draw_exposure, draw_seeds
from unetpp.data.scaling import find_limits, scaled
from unetpp.data.symmetries import Flips, draw_symmetry, find_group, move
from unetpp.data.targets import CropsWithTargets
from unetpp.data.warp import Warp
from unetpp.offline import silenced

with silenced():
    import albumentations as A

cv2.setNumThreads(0)  # a single image is too little work for threads, and they compete with torch's


class Hue(A.HueSaturationValue):
    """albumentations' hue shift without the conversion to 8 bits, which would leave few grey levels in dim images."""

    # The library passes all of them by name.
    def apply(
        self,
        img: np.ndarray,
        hue_shift: float,
        sat_shift: float,  # noqa: ARG002
        val_shift: float,  # noqa: ARG002
        **params,  # noqa: ARG002
    ) -> np.ndarray:
        """Image (H, W, 3) float32 in [0, 1]; `hue_shift` in degrees / 2."""
        hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)  # for floats, hue is in degrees
        hue = hsv[..., 0] + np.float32(2 * hue_shift)
        hsv[..., 0] = np.mod(hue, np.float32(360), out=hue)
        shifted = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=hsv)
        return np.clip(shifted, 0, 1, out=shifted)


class Augment:
    """Random crop, flips and quarter turns, brightness, contrast and hue; image and mask move together.

    Args:
        crops: the random crop, optionally rotated and zoomed.
        flips, quarter_turns: draws one of the symmetries that they generate (`find_group`).
        brightness: limit of brightness and contrast changes (`draw_exposure`); 0 for none.
        hue: limit of the hue shift in OpenCV's units (degrees / 2); 0 for none. Only for RGB images.
    """

    def __init__(
        self,
        crops: Crops | Warp | CropsWithTargets,
        flips: Flips,
        quarter_turns: bool,
        brightness: float,
        hue: int,
        channels: int,
    ):
        self.crops, self._group, self._brightness = crops, find_group(flips, quarter_turns), brightness
        # Saturation is not changed: increasing it would paint grey pixels red.
        self._hue = Hue(hue, 0, 0, p=0.5) if hue > 0 and channels == 3 else None

    def __call__(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        key: Key,
        spots: Sequence[np.ndarray] = (),
        limits: tuple[float, float] | None = None,
        moments: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment a sample.

        Args:
            image: (H, W, C) uint8, uint16 or float32.
            mask: (H, W) of any type; its values are moved, never interpolated.
            key: (seed, epoch, sample id).
            spots: foreground pixels of the mask (`find_spots`).
            limits: the values that become 0 and 1; by default `find_limits`.
            moments: mean and standard deviation (C,) of the whole scaled image; by default those of `image`.

        Returns:
            image (H', W', C) float32, in [0, 1] apart from changes of brightness, and mask (H', W') of its own type.
        """
        limits = limits or find_limits(image)
        image, mask = self.crops(image, mask, key, spots)
        seeds = draw_seeds(key)  # one per step, so that switching a step off does not change the others
        symmetry = draw_symmetry(self._group, seeds[2])
        image, mask = (np.ascontiguousarray(move(one, symmetry)) for one in (image, mask))
        # float32, because colour transforms refuse uint16, and would each round uint8. After the crop, which may be a
        # hundredth of the image.
        image = scaled(image, limits)
        if self._hue:
            # Without Compose, which spends a third of its time on checks for boxes, keypoints and volumes.
            self._hue.set_random_seed(seeds[4])
            image = self._hue(image=image)["image"]
        contrast, brightness = draw_exposure(key, self._brightness)
        if (contrast, brightness) != (1, 0):
            mean, std = moments or (image.mean(axis=(0, 1)), image.std(axis=(0, 1)))
            # x to mean + contrast * (x - mean) + brightness * std
            image = image * np.float32(contrast) + ((1 - contrast) * mean + brightness * std).astype(np.float32)
        return image, mask
