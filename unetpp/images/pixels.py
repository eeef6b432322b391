"""Pixel arrays as training has them: how many channels, and the one geometry in which images are resized."""

from collections.abc import Callable

import numpy as np

from unetpp.images.frame import Size

# ITU-R BT.601, the weights of Pillow and OpenCV.
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])
FLOAT_LIMIT = 1e30  # sums over an image stay finite in float32


def as_float32(pixels: np.ndarray) -> np.ndarray:
    """Numbers of any type as float32.

    Raises:
        ValueError: some are NaN, infinite or beyond 1e30.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused
        kept = pixels.astype(np.float32)
        num_bad = kept.size - int(np.count_nonzero(np.abs(kept) <= FLOAT_LIMIT))  # NaN is not
    if num_bad:
        raise ValueError(
            f"found {num_bad} of {kept.size} values that are NaN, infinite or beyond {FLOAT_LIMIT:g}; expected finite "
            "ones"
        )
    return kept


def convert(image: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, 1 or 3) to (H, W, channels) of the same type: grey is repeated, RGB is weighted."""
    if image.shape[2] == channels:
        return np.ascontiguousarray(image)
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    grey = image @ GREY_WEIGHTS
    return (grey if image.dtype.kind == "f" else np.rint(grey)).astype(image.dtype)[:, :, None]  # (H, W, 1)


def shown(image: np.ndarray) -> np.ndarray:
    """(H, W, C) as (H, W, 3) for the eye: the first three channels, or the first one as grey."""
    return image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)


def by_channels(change: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """`change` of (H, W) or (H, W, C), four channels at a time, as many as OpenCV takes everywhere."""
    if image.ndim == 2 or image.shape[2] <= 4:
        return change(image)
    parts = [change(np.ascontiguousarray(image[:, :, at : at + 4])) for at in range(0, image.shape[2], 4)]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """(H, W) or (H, W, C) to (height, width), by the one geometry in which images and masks are resized.

    Bilinear, as the classic protocol resizes images; what is more than four times as large is first made smaller by
    whole numbers, by area, so that no pixel is passed over. Area alone blurs the rims of small objects
    (benchmarks/resize.py).

    OpenCV does it. Where only what prediction needs is installed, numpy does: the same bits for uint8 by the bilinear
    step, else within a rounding (a level of uint8 and uint16).
    """
    try:
        import cv2
    except ModuleNotFoundError:
        cv2 = None

    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    factor = min(height // (2 * size[0]), width // (2 * size[1]))
    smaller = (height // factor, width // factor) if factor > 1 else (height, width)

    def change(pixels: np.ndarray) -> np.ndarray:
        if not cv2:
            return _bilinear(_by_area(pixels, smaller) if factor > 1 else pixels, size)
        if factor > 1:
            pixels = cv2.resize(pixels, smaller[::-1], interpolation=cv2.INTER_AREA)
        return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)

    return by_channels(change, image).reshape(*size, *image.shape[2:])  # OpenCV drops an axis of 1


def _by_area(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """OpenCV's INTER_AREA: each new pixel is the mean over the area of the old ones that it covers."""
    pixels = image.astype(np.float64)
    for axis, size in enumerate(shape):
        length = image.shape[axis]
        edges = np.arange(size + 1) * (length / size)
        whole = np.floor(edges).astype(int)
        sums = np.insert(np.cumsum(pixels, axis), 0, 0, axis)
        parts = np.take(pixels, whole, axis, mode="clip") * _along(edges - whole, axis, pixels.ndim)
        pixels = np.diff(np.take(sums, whole, axis, mode="clip") + parts, axis=axis) * (size / length)
    return _as_type(pixels, image.dtype)


def _bilinear(image: np.ndarray, size: Size) -> np.ndarray:
    """OpenCV's INTER_LINEAR: of uint8 in its fixed-point numbers of 11 bits, of other types in float32."""
    fixed = image.dtype == np.uint8
    pixels = image.astype(np.int64 if fixed else np.float32)
    for axis in (1, 0):
        at = (np.arange(size[axis]) + 0.5) * (image.shape[axis] / size[axis]) - 0.5
        low = np.floor(at).astype(int)
        share = _along((at.astype(np.float32) if fixed else at) - low, axis, image.ndim).astype(np.float32)
        first, second = (np.take(pixels, index, axis, mode="clip") for index in (low, low + 1))
        if not fixed:
            pixels = first * (1 - share) + second * share
            continue
        one, other = (np.rint(weight * 2048).astype(np.int64) for weight in (1 - share, share))
        if axis == 1:
            pixels = first * one + second * other
        else:
            pixels = (((first >> 4) * one >> 16) + ((second >> 4) * other >> 16) + 2) >> 2
    return _as_type(pixels, image.dtype)


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """(n,) with further axes of 1, so that it multiplies along `axis`."""
    return values.reshape([-1 if one == axis else 1 for one in range(ndim)])


def _as_type(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (np.rint(pixels) if dtype.kind in "ui" else pixels).astype(dtype)
