"""Turns and zooms of a crop: what moves, what stays, and what a draw depends on."""

import math

import numpy as np
import pytest

from unetpp.data.crops import Crops
from unetpp.data.warp import Warp, warp


def disc(side: int = 64, at: tuple[float, float] = (20.0, 31.5), radius: float = 7.0) -> np.ndarray:
    """A mask (side, side) bool of a disc whose middle is at (row, column)."""
    rows, columns = np.mgrid[:side, :side]
    return (rows - at[0]) ** 2 + (columns - at[1]) ** 2 < radius**2


def middle(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(rows.mean()), float(columns.mean())


def test_image_and_mask_move_together():
    mask = disc().astype(np.uint8)
    for number in range(20):
        image, moved = Warp(Crops(48), 180, 1.5)(255 * mask[..., None], mask, (0, number, "x"))
        assert image.shape == (48, 48, 1)
        assert (abs((image[..., 0] > 127).astype(int) - moved)).mean() < 0.01  # at the edge alone


def test_a_turn_goes_counter_clockwise_about_the_middle_and_a_zoom_away_from_it():
    mask = disc(at=(20.0, 31.5))  # above the middle, (31.5, 31.5)
    assert middle(warp(mask[..., None].astype(np.uint8), mask, math.pi / 2, 1.0)[1]) == pytest.approx(
        (31.5, 20.0), abs=0.1
    )
    _, large = warp(mask[..., None].astype(np.uint8), mask, 0.0, 1.5)
    assert middle(large) == pytest.approx((31.5 - 1.5 * 11.5, 31.5), abs=0.3)
    assert large.sum() == pytest.approx(1.5**2 * mask.sum(), rel=0.05)


def test_a_quarter_turn_loses_no_pixel():
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 255, (32, 32, 3), np.uint8), rng.integers(0, 200, (32, 32), np.uint8)
    turned, turned_mask = warp(image, mask, math.pi / 2, 1.0)
    assert np.array_equal(turned_mask, np.rot90(mask))
    assert np.abs(turned.astype(int) - np.rot90(image)).max() <= 1


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32, np.int64])
def test_labels_of_any_type_are_moved_and_never_computed_with(dtype):
    labels = (disc(at=(20, 20)) * 1 + disc(at=(40, 40)) * 255).astype(dtype)
    image = np.zeros((64, 64, 3), np.float32)
    for angle, factor in ((0.3, 1.3), (-2.0, 0.7)):
        _, moved = warp(image, labels, angle, factor)
        assert moved.dtype == labels.dtype
        assert set(np.unique(moved)) == set(np.unique(labels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_type_shape_and_range(dtype, channels):
    image = (np.random.default_rng(0).random((40, 56, channels)) * (1 if dtype == np.float32 else 200)).astype(dtype)
    moved, _ = warp(image, np.zeros((40, 56), np.uint8), 0.4, 0.6)
    assert (moved.dtype, moved.shape) == (image.dtype, image.shape)
    assert image.min() <= moved.min()
    assert moved.max() <= image.max()
    assert moved[0, 0].any()  # what comes in from outside is mirrored, not black


def test_half_of_the_samples_stay_as_they_are_and_a_draw_is_a_function_of_its_key_alone():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    mask = disc(32, (10, 20)).astype(np.uint8)
    keys = [(0, epoch, name) for epoch in range(60) for name in "abcd"]
    first, second = ([Warp(Crops(24), 30, 1.3)(image, mask, key)[0] for key in keys] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    same = [np.array_equal(a, Crops(24)(image, mask, key)[0]) for a, key in zip(first, keys, strict=True)]
    assert 0.4 < np.mean(same) < 0.6
    assert len({one.tobytes() for one in first}) > 150  # unturned crops have 81 places
    assert np.array_equal(Warp(Crops(24))(image, mask, keys[0])[0], Crops(24)(image, mask, keys[0])[0])  # no limits
