"""What a prediction made of each pixel, for pictures: one map for the page and for a version's evidence."""

import numpy as np

from unetpp.images.display import ERRORS
from unetpp.network.masks import IGNORE

CODES = {name: code for code, name in enumerate(ERRORS)}
SAID = {
    "found": "found",
    "extra": "extra: predicted, not there",
    "missed": "missed: there, not predicted",
    "confused": "taken for another class",
    "ignored": "not annotated, not counted",
}


def error_map(mask: np.ndarray, mask_hat: np.ndarray, background: bool = True) -> np.ndarray:
    """(H, W) masks to indices into ERRORS, uint8, without stripes.

    Confused is one class taken for another, or not the same labels. Without a background each value is a class, so that
    nothing is extra or missed.
    """
    known, classes = mask != IGNORE, np.bool_(not background)
    cases = (
        (~known, "ignored"),
        (((mask > 0) | classes) & (mask_hat == mask), "found"),
        ((mask == 0) & (mask_hat > 0) & ~classes, "extra"),
        ((mask > 0) & (mask_hat == 0) & ~classes, "missed"),
        (mask_hat != mask, "confused"),
    )
    chosen = np.select([where for where, _ in cases], [CODES[name] for _, name in cases], CODES["right"])
    return chosen.astype(np.uint8)


def stripe(errors: np.ndarray) -> np.ndarray:
    """Every other diagonal of what was missed in the paler colour."""
    rows, columns = np.indices(errors.shape)
    pale = (errors == CODES["missed"]) & ((rows + columns) % 4 < 2)
    return np.where(pale, CODES["stripe"], errors).astype(np.uint8)
