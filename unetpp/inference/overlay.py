"""A mask laid over its image."""

import numpy as np

from unetpp.errors import UserError
from unetpp.images.display import display, fill_classes
from unetpp.network.masks import find_classes


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    multilabel: bool = False,
    background: bool = True,
    middle: tuple[float, float] | None = None,
) -> np.ndarray:
    """The image with each class of the mask filled in its colour, the same as in the reports.

    Args:
        image: (H, W) or (H, W, C) of any type.
        mask: (H, W) as `Predictor.mask` gives it.
        multilabel: it holds labels; background: its class 0 is no class.
        middle: of the whole image where this is a part of it (`unetpp.images.display.find_middle`).

    Returns:
        (H, W, 3) uint8, as `PIL.Image.fromarray` takes it.

    Raises:
        UserError: an image and a mask of different sizes.
    """
    pixels, found = np.asarray(image), np.asarray(mask)
    if pixels.ndim not in (2, 3) or found.shape != pixels.shape[:2]:
        raise UserError(
            f"found an image of shape {pixels.shape} and a mask of shape {found.shape}; expected (H, W, C) or (H, W), "
            "and (H, W): overlay draws one image at a time"
        )
    shown = display(pixels if pixels.ndim == 3 else pixels[..., None], middle)
    return fill_classes(shown, find_classes(found.astype(np.uint8), multilabel, background))
