"""Scale pixels of any type to the values that training and prediction feed to a network."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from unetpp.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

STD_FLOOR = 1e-3  # contrast below this is noise: a quarter of an 8-bit grey level


def find_limits(image: np.ndarray) -> tuple[float, float]:
    """The values that `scaled` maps to 0 and 1: the range of the type for uint8 and uint16, of the values for float32.

    Raises:
        UserError: another shape or type.
    """
    if image.ndim != 3 or image.dtype not in (np.uint8, np.uint16, np.float32):
        raise UserError(
            f"found an image array of shape {image.shape} and type {image.dtype}; "
            "expected (H, W, C) of uint8, uint16 or float32"
        )
    if image.dtype == np.float32:
        return float(image.min()), float(image.max())
    return 0.0, float(np.iinfo(image.dtype).max)


def scaled(image: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Scale (H, W, C) uint8, uint16 or float32 to float32 in [0, 1]; a constant float image becomes 0.

    Args:
        limits: those of the whole image if `image` is a part of it; by default its own (`find_limits`).

    Raises:
        UserError: another shape or type.
    """
    low, high = limits or find_limits(image)
    pixels = image.astype(np.float32)
    if low:
        pixels -= np.float32(low)
    pixels /= np.float32(high - low or 1.0)
    return pixels


# torch is imported where it is used: prediction with other runtimes does not need it.
def scale(image: np.ndarray, limits: tuple[float, float] | None = None) -> "Tensor":
    """`scaled` as a tensor (C, H, W)."""
    import torch

    return torch.from_numpy(channels_first(scaled(image, limits)))


def channels_first(image: np.ndarray) -> np.ndarray:
    """(H, W, C) as (C, H, W)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def standardise(image: "Tensor", statistics: "Tensor | None" = None) -> "Tensor":
    """Standardise each image and channel of (N, C, H, W) to mean 0 and standard deviation 1 over its own pixels.

    With the image's own statistics and not the dataset's, because exposure, staining and camera bit depth differ from
    image to image (Isensee et al. 2021, nnU-Net, does so except for CT). An image without contrast becomes zeros.

    Args:
        statistics: mean and standard deviation (N, C, 2) to use instead of the image's own.
    """
    if statistics is None:
        mean = image.mean(dim=(-2, -1), keepdim=True)
        std = image.std(dim=(-2, -1), keepdim=True, correction=0)
    else:
        mean, std = statistics[..., 0, None, None], statistics[..., 1, None, None]
    return (image - mean) / (std + STD_FLOOR)


def measure_parts(
    parts: Iterable[np.ndarray], limits: tuple[float, float] | None = None
) -> tuple[tuple[float, float], np.ndarray]:
    """Limits (`find_limits`) of an image, and mean and standard deviation (1, C, 2) float32 of the scaled image.

    Integers are summed exactly, floats in float64 relative to the first of them; both a few rows at a time.

    Args:
        parts: (h, w, C) uint8, uint16 or float32, which together make up the image.
        limits: the values that become 0 and 1; by default `find_limits` of the whole image.
    """
    num, total, squares, least, greatest, shift, exact = 0, 0, 0, [], [], 0.0, False
    for rows in (rows for part in parts for rows in _blocks(part)):
        exact = rows.dtype.kind == "u"
        if exact:
            wide, kind = rows, (np.uint16 if rows.dtype == np.uint8 else np.uint32)
            limits = limits or find_limits(rows)
        else:
            shift = shift if num else rows[0, 0].astype(np.float64)
            wide, kind = rows - shift, np.float64
            least.append(rows.min())
            greatest.append(rows.max())
        whole = np.int64 if exact else np.float64
        sums = (one.sum(axis=(0, 1), dtype=whole) for one in (wide, np.multiply(wide, wide, dtype=kind)))
        first, second = (one.astype(object) for one in sums)  # Python's numbers, which do not overflow
        num, total, squares = num + rows.shape[0] * rows.shape[1], total + first, squares + second
    low, high = limits or (float(min(least)), float(max(greatest)))
    mean = np.asarray(total / num, np.float64) + (shift - low)
    variance = np.asarray((num * squares - total * total) / (num * num), np.float64)
    found = np.stack([mean, np.sqrt(variance.clip(0))], axis=1) / (high - low or 1.0)
    return (low, high), found[None].astype(np.float32)


def measure_statistics(images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each channel of (N, C, H, W) float32 in [0, 1]: (N, C, 2) float32."""
    pixels = images.reshape(*images.shape[:2], -1)
    mean = pixels.mean(axis=2, dtype=np.float64)
    squares = pixels - mean[..., None].astype(np.float32)
    squares *= squares
    return np.stack([mean, np.sqrt(squares.mean(axis=2))], axis=2).astype(np.float32)


def _blocks(part: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of a part, about a million pixels at a time."""
    step = max(1, 2**20 // part.shape[1])
    for top in range(0, len(part), step):
        yield part[top : top + step]
