"""Augmentation by albumentations, drawn from (seed, epoch, sample id) and from nothing else.

albumentations 2.0.8, the last MIT release, gives every loader process the same random stream; here each
sample's stream is set from its own key, so that the draw is the same whatever the number of processes,
the order, or a restart in between. This is the one file that imports it.
"""

import hashlib

import albumentations as A
import cv2
import numpy as np

from unetpp.inference import scale

cv2.setNumThreads(0)  # one image at a time is too little work for threads, and they fight torch's


class Augment:
    """Random crop, flips and quarter turns, brightness, contrast and hue; image and mask move together.

    Args:
        crop_px: side of a square random crop, or None for whole images; smaller images are padded first.
        flips: one of the eight symmetries of the square.
        brightness: limit of relative brightness and contrast changes; 0 for none.
        hue: limit of the hue shift in OpenCV's units (degrees / 2); 0 for none. RGB images alone.
    """

    def __init__(self, crop_px: int | None, flips: bool, brightness: float, hue: int, channels: int):
        steps: list = []
        if crop_px is not None:
            steps.append(
                A.RandomCrop(crop_px, crop_px, pad_if_needed=True, border_mode=cv2.BORDER_REFLECT_101, fill_mask=0)
            )
        if flips:
            steps.append(A.D4(p=1))
        if brightness > 0:
            # Brightness in shares of the image's own mean. In shares of full scale, the library's default, it would
            # push a dim fluorescence image below zero, and train on a black image with a mask full of nuclei.
            steps.append(A.RandomBrightnessContrast(brightness, brightness, brightness_by_max=False, p=0.5))
        if hue > 0 and channels == 3:
            # Saturation stays: to add it to a grey pixel would paint it red.
            steps.append(A.HueSaturationValue(hue, 0, 0, p=0.5))
        self.compose = A.Compose(steps)

    def __call__(self, image: np.ndarray, mask: np.ndarray, key: tuple[int, int, str]) -> tuple[np.ndarray, np.ndarray]:
        """One draw.

        Args:
            image: (H, W, C) uint8, uint16 or float32.
            mask: (H, W) uint8.
            key: (seed, epoch, sample id).

        Returns:
            image (H', W', C) float32 in [0, 1] and mask (H', W') uint8.
        """
        digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
        self.compose.set_random_seed(int.from_bytes(digest[:4], "big"))
        # float32: colour transforms refuse uint16, and on uint8 each of them would round.
        as_float = scale(image).permute(1, 2, 0).numpy()
        drawn = self.compose(image=np.ascontiguousarray(as_float), mask=np.array(mask))
        return drawn["image"], drawn["mask"]
