"""Object numbers of a sample: which object each pixel belongs to, packed into some hundred bytes."""

import io
import zlib

import numpy as np

from unetpp.network.masks import IGNORE, MAX_LABELS

MOST = 2**24  # all object numbers of a prepared sample are below this


def fit_numbers(numbers: np.ndarray, mask: np.ndarray, multilabel: bool = False) -> np.ndarray:
    """Resize numbers (H, W), or (K, H, W) for labels, to a mask (h, w) by nearest neighbour; 0 outside of the mask."""
    places = [
        ((np.arange(side) + 0.5) * (own / side)).astype(int)
        for own, side in zip(numbers.shape[-2:], mask.shape, strict=True)
    ]
    inside = (mask > 0) & (mask != IGNORE)
    if multilabel:
        inside = inside & (mask >> np.arange(MAX_LABELS, dtype=np.uint8)[: len(numbers), None, None] & 1 == 1)
    return np.where(inside, numbers[..., places[0][:, None], places[1]], 0)


def renumber(numbers: np.ndarray) -> np.ndarray:
    """Renumber objects with numbers below `MOST`; a mask may number them by colours or any whole numbers."""
    if numbers.max(initial=0) < MOST:
        return numbers
    return np.searchsorted(np.unique(numbers[numbers > 0]), numbers, side="right").astype(np.int32)


def pack(numbers: np.ndarray) -> bytes:
    """Compress numbers from 0 on, in the smallest type that holds them."""
    file = io.BytesIO()
    np.save(file, numbers.astype(np.min_scalar_type(numbers.max(initial=0))), allow_pickle=False)
    return zlib.compress(file.getvalue(), 6)


def unpack(content: bytes) -> np.ndarray:
    """The numbers that `pack` compressed."""
    return np.load(io.BytesIO(zlib.decompress(content)), allow_pickle=False)
