"""Instance numbers of a sample: which object each pixel belongs to, packed into some hundred bytes."""

import io
import zlib

import numpy as np

from unetpp.network.masks import IGNORE, MAX_LABELS

MOST = 2**24  # what numbers of objects lie below, where they are read


def fit_numbers(numbers: np.ndarray, mask: np.ndarray, multilabel: bool = False) -> np.ndarray:
    """Numbers (H, W), or of labels (K, H, W), at the size of a mask (h, w): the nearest pixel's, 0 outside the mask."""
    places = [
        ((np.arange(side) + 0.5) * (own / side)).astype(int)
        for own, side in zip(numbers.shape[-2:], mask.shape, strict=True)
    ]
    inside = (mask > 0) & (mask != IGNORE)
    if multilabel:
        inside = inside & (mask >> np.arange(MAX_LABELS, dtype=np.uint8)[: len(numbers), None, None] & 1 == 1)
    return np.where(inside, numbers[..., places[0][:, None], places[1]], 0)


def renumber(numbers: np.ndarray) -> np.ndarray:
    """The same objects by numbers below `MOST`: a mask may number them by colours, or by any whole numbers."""
    if numbers.max(initial=0) < MOST:
        return numbers
    return np.searchsorted(np.unique(numbers[numbers > 0]), numbers, side="right").astype(np.int32)


def pack(numbers: np.ndarray) -> bytes:
    """Numbers from 0 on, in the smallest type that holds them, compressed."""
    file = io.BytesIO()
    np.save(file, numbers.astype(np.min_scalar_type(numbers.max(initial=0))), allow_pickle=False)
    return zlib.compress(file.getvalue(), 6)


def unpack(content: bytes) -> np.ndarray:
    """What `pack` packed."""
    return np.load(io.BytesIO(zlib.decompress(content)), allow_pickle=False)
