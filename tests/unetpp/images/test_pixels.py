"""Resizing has one geometry, whether OpenCV does it or, where it is not installed, numpy."""

import sys

import numpy as np
import pytest

from unetpp.images import pixels
from unetpp.images.pixels import as_float32, resize


def noise(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    top = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    return (np.random.default_rng(0).random(shape) * top).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    "shape", [(24, 24, 3), (7, 90, 1), (33, 50), (95, 61, 3), (240, 240, 1), (150, 97, 3), (301, 500)]
)
def test_numpy_resizes_as_opencv_does(shape, dtype, monkeypatch):
    image = noise(shape, dtype)
    expected = resize(image, (24, 24))
    monkeypatch.setattr(pixels, "BLOCK_PX", 300)  # so that rows come in several parts
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    found = resize(image, (24, 24))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype) == ((24, 24, *shape[2:]), dtype)
    by_area = min(shape[:2]) >= 4 * 24
    level = 0 if dtype == np.uint8 and not by_area else 1 if dtype != np.float32 else 1e-6
    assert np.abs(found.astype(float) - expected).max() <= level


def test_numbers_that_float32_does_not_hold_are_counted():
    assert as_float32(np.array([-3, 2**40])).tolist() == [-3, 2**40]
    with pytest.raises(ValueError, match="3 of 4 values"):
        as_float32(np.array([np.nan, np.inf, 1e300, 0]))
