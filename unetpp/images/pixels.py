"""Pixel arrays for training: conversion of channels, and the one geometry in which images are resized."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from unetpp.images.frame import Size

# ITU-R BT.601, the weights of Pillow and OpenCV.
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])
BLOCK_PX = 2**19  # converted or resized at once
FLOAT_LIMIT = 1e30  # sums over an image stay finite in float32


def as_float32(pixels: np.ndarray) -> np.ndarray:
    """Numbers of any type as float32.

    Raises:
        ValueError: some are NaN, infinite or beyond 1e30.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are refused
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
    grey = np.empty((*image.shape[:2], 1), image.dtype)
    step = max(1, BLOCK_PX // image.shape[1])
    for top in range(0, len(image), step):  # the product is float64, eight times as large as the result
        rows = image[top : top + step] @ GREY_WEIGHTS
        grey[top : top + step, :, 0] = rows if image.dtype.kind == "f" else np.rint(rows)
    return grey


def shown(image: np.ndarray) -> np.ndarray:
    """(H, W, C) as (H, W, 3) for display: the first three channels, or the first one as grey."""
    return image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)


def by_channels(change: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """`change` of (H, W) or (H, W, C), four channels at a time, the most that OpenCV accepts everywhere."""
    if image.ndim == 2 or image.shape[2] <= 4:
        return change(image)
    parts = [change(np.ascontiguousarray(image[:, :, at : at + 4])) for at in range(0, image.shape[2], 4)]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)


def area_shape(shape: Size, size: Size) -> Size:
    """The shape after the first, area-based step of `resize`: unchanged if it is not four times as large."""
    factor = min(shape[0] // (2 * size[0]), shape[1] // (2 * size[1]))
    return (shape[0] // factor, shape[1] // factor) if factor > 1 else shape


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """(H, W) or (H, W, C) to (height, width), by the one geometry in which images and masks are resized.

    Bilinear, as in the classic protocol; an image more than four times as large is first reduced by an integer factor,
    by area, so that no pixel is skipped. Area interpolation only would blur the rims of small objects
    (benchmarks/resize.py).

    OpenCV does it. If only the packages for prediction are installed, numpy does: the bilinear step of uint8 bit for
    bit, else within a rounding (a level of uint8 and uint16).
    """
    try:
        import cv2
    except ModuleNotFoundError:
        cv2 = None

    shape = (image.shape[0], image.shape[1])
    if shape == size:
        return image
    if not cv2:
        return resize_rows(shape, lambda top, bottom: image[top:bottom], size)
    smaller = area_shape(shape, size)

    def change(pixels: np.ndarray) -> np.ndarray:
        if smaller != shape:
            pixels = cv2.resize(pixels, smaller[::-1], interpolation=cv2.INTER_AREA)
        return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)

    return by_channels(change, image).reshape(*size, *image.shape[2:])  # OpenCV drops an axis of 1


def resize_rows(shape: Size, read: Callable[[int, int], np.ndarray], size: Size) -> np.ndarray:
    """`resize` of an image that is read a few rows at a time.

    Args:
        read: rows from the first to before the second.
    """
    smaller = area_shape(shape, size)
    if smaller != shape:
        whole = _by_blocks(_by_area, shape, read, smaller)
        return _bilinear(whole, 0, smaller, slice(0, size[0]), size)
    return _by_blocks(_bilinear, shape, read, size)


def _by_blocks(change: Callable, shape: Size, read: Callable[[int, int], np.ndarray], size: Size) -> np.ndarray:
    """`change` for as many new rows at a time as BLOCK_PX old pixels give, or one."""
    old, found = shape[0] / size[0], []
    step = max(1, int(BLOCK_PX / shape[1] / old))
    for top in range(0, size[0], step):
        rows = slice(top, min(top + step, size[0]))
        first = max(0, math.floor(rows.start * old - 1))
        part = read(first, min(shape[0], math.ceil(rows.stop * old + 1)))
        found.append(change(part, first, shape, rows, size))
    return np.concatenate(found)


def _by_area(part: np.ndarray, first: int, shape: Size, rows: slice, size: Size) -> np.ndarray:
    """OpenCV's INTER_AREA: each new pixel is the mean over the area of the old ones that it covers.

    Args:
        part: rows of an image of `shape`, from `first` on.
        rows: the resulting rows of the new image of `size`.
    """
    pixels = part.astype(np.float64)
    for axis in (1, 0):
        old = shape[axis] / size[axis]
        edges = np.arange(rows.start, rows.stop + 1) * old - first if axis == 0 else np.arange(size[1] + 1) * old
        whole = np.floor(edges).astype(int)
        sums = np.insert(np.cumsum(pixels, axis), 0, 0, axis)
        shares = np.take(pixels, whole, axis, mode="clip") * _along(edges - whole, axis, pixels.ndim)
        pixels = np.diff(np.take(sums, whole, axis, mode="clip") + shares, axis=axis) / old
    return _as_type(pixels, part.dtype)


def _bilinear(part: np.ndarray, first: int, shape: Size, rows: slice, size: Size) -> np.ndarray:
    """OpenCV's INTER_LINEAR: uint8 in its 11-bit fixed-point numbers, others in float32. Arguments as of `_by_area`."""
    fixed = part.dtype == np.uint8
    pixels: Any = part.astype(np.int64 if fixed else np.float32)
    for axis in (1, 0):
        new = np.arange(rows.start, rows.stop) if axis == 0 else np.arange(size[1])
        at = (new + 0.5) * (shape[axis] / size[axis]) - 0.5
        low = np.floor(at).astype(int)
        share = _along((at.astype(np.float32) if fixed else at) - low, axis, part.ndim).astype(np.float32)
        places = (index.clip(0, shape[axis] - 1) - (0 if axis else first) for index in (low, low + 1))
        one, other = (np.take(pixels, index, axis) for index in places)
        if not fixed:
            pixels = one * (1 - share) + other * share
            continue
        left, right = (np.rint(weight * 2048).astype(np.int64) for weight in (1 - share, share))
        if axis == 1:
            pixels = one * left + other * right
        else:
            pixels = (((one >> 4) * left >> 16) + ((other >> 4) * right >> 16) + 2) >> 2
    return _as_type(pixels, part.dtype)


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """(n,) with further axes of 1, so that it multiplies along `axis`."""
    return values.reshape([-1 if one == axis else 1 for one in range(ndim)])


def _as_type(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (np.rint(pixels) if dtype.kind in "ui" else pixels).astype(dtype)
