"""Draw a mask over its image."""

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
    """The image with each class of the mask filled in its colour, as in the reports.

    Args:
        image: (H, W) or (H, W, C) of any type.
        mask: (H, W) as returned by `Predictor.mask`.
        multilabel: the mask contains labels, one per bit.
        background: class 0 is the background, which is not drawn.
        middle: of the whole image if this is a part of it (`unetpp.images.display.find_middle`).

    Returns:
        (H, W, 3) uint8 RGB, for example for `PIL.Image.fromarray`.

    Raises:
        UserError: image and mask of different sizes, or of other shapes.
    """
    pixels, found = np.asarray(image), np.asarray(mask)
    if pixels.ndim not in (2, 3) or found.shape != pixels.shape[:2]:
        raise UserError(
            f"found an image of shape {pixels.shape} and a mask of shape {found.shape}; expected (H, W, C) or (H, W) "
            "with a mask (H, W) of the same size: overlay draws one image at a time"
        )
    shown = display(pixels if pixels.ndim == 3 else pixels[..., None], middle)
    return fill_classes(shown, find_classes(found.astype(np.uint8), multilabel, background))
