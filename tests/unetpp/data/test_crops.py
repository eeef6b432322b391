"""Crops: what the draw of a window is a function of, and what it must contain."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetpp.data.crops import NUM_SPOTS, Crops, draw_seeds, find_spots
from unetpp.network.masks import IGNORE

sides = st.integers(1, 60)


def numbered(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they were."""
    return np.arange(height * width, dtype=np.float32).reshape(height, width, 1)


@settings(deadline=None)
@given(height=sides, width=sides, size=st.integers(1, 80), epoch=st.integers(0, 99))
def test_a_crop_is_a_window_of_the_image_mirrored_at_its_edges_where_it_is_too_small(height, width, size, epoch):
    image = numbered(height, width)
    crop, crop_mask = Crops(size)(image, image[..., 0].astype(np.int64) + 1000, (0, epoch, "x"))
    assert crop.shape == (size, size, 1)
    places, inside = crop[..., 0].astype(np.int64), crop_mask != IGNORE
    assert np.array_equal(places[inside] + 1000, crop_mask[inside])  # together, wherever they go
    assert inside.sum() == min(height, size) * min(width, size)  # what is mirrored counts nowhere
    rows, columns = np.divmod(places, width)
    for along, side in ((rows[:, 0], height), (columns[0], width)):
        assert len(np.unique(along)) == min(side, size)
        steps = np.abs(np.diff(along))
        assert (steps == (side > 1)).all()  # neighbours stay neighbours, back and forth at an edge
    assert np.array_equal(places, rows[:, :1] * width + columns[:1])


def test_every_place_of_a_crop_is_drawn():
    image, mask = numbered(12, 12), np.zeros((12, 12), np.uint8)
    corners = {int(Crops(8)(image, mask, (0, epoch, "x"))[0][0, 0, 0]) for epoch in range(400)}
    assert corners == {12 * y + x for y in range(5) for x in range(5)}


@settings(deadline=None)
@given(
    height=sides,
    width=sides,
    size=st.integers(1, 80),
    epoch=st.integers(0, 99),
    objects=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59), st.integers(1, 3)), max_size=4),
)
def test_with_a_share_of_1_every_crop_of_an_image_with_foreground_has_some(height, width, size, epoch, objects):
    mask = np.zeros((height, width), np.uint8)
    for y, x, value in objects:
        mask[y % height, x % width] = value
    _, crop = Crops(size, foreground=1.0)(numbered(height, width), mask, (0, epoch, "x"), find_spots(mask))
    assert np.isin([1, 2, 3], crop).any() == mask.any()


def test_a_share_of_the_crops_has_foreground_and_the_others_are_those_of_a_share_of_0():
    mask = np.zeros((400, 400), np.uint8)
    mask[371, 33] = 1
    image, spots = numbered(400, 400), find_spots(mask)
    drawn = 0
    for epoch in range(600):
        key = (0, epoch, "x")
        crop, crop_mask = Crops(20, foreground=0.3)(image, mask, key, spots)
        drawn += int(crop_mask.any())
        if not crop_mask.any():
            assert np.array_equal(crop, Crops(20)(image, mask, key, spots)[0])
    assert 140 < drawn < 220  # 0.3 * 600 = 180, four standard deviations


def test_a_rare_class_is_drawn_as_often_as_a_frequent_one_and_an_object_lies_anywhere_in_its_crop():
    mask = np.ones((100, 100), np.uint8)
    mask[:, :90] = 0
    mask[50, 40] = 2
    spots, places, rare = find_spots(mask), set(), 0
    for epoch in range(1000):
        _, crop = Crops(10, foreground=1.0)(numbered(100, 100), mask, (0, epoch, "x"), spots)
        if (crop == 2).any():
            rare += 1
            places.add(tuple(np.argwhere(crop == 2)[0]))
    assert 430 < rare < 570
    assert len(places) == 100


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0, 0.2), height=st.integers(1, 80), width=st.integers(1, 80))
def test_spots_are_pixels_of_each_class_and_at_most_256(seed, share, height, width):
    rng = np.random.default_rng(seed)
    mask = (rng.random((height, width)) < share).astype(np.uint8) * rng.integers(1, 4, (height, width), np.uint8)
    spots = find_spots(mask)
    values = [np.unique(mask.reshape(-1)[places]).tolist() for places in spots]
    assert values == [[value] for value in np.unique(mask) if value]
    for places, (value,) in zip(spots, values, strict=True):
        assert len(np.unique(places)) == len(places) == min(NUM_SPOTS, (mask == value).sum())


def test_a_crop_of_a_large_image_touches_no_other_pixel():
    """Views into the image, and no look at its mask: an image may be far larger than memory allows to read often."""
    image, mask = np.zeros((4000, 4000, 3), np.uint8), np.zeros((4000, 4000), np.uint8)
    mask[123, 456] = 1
    crop, crop_mask = Crops(512, foreground=1.0)(image, mask, (0, 0, "x"), find_spots(mask))
    assert np.shares_memory(crop, image)
    assert np.shares_memory(crop_mask, mask)


def test_seeds_of_different_keys_and_of_one_key_differ():
    keys = [(seed, epoch, f"{name}") for seed in range(3) for epoch in range(10) for name in range(30)]
    seeds = [one for key in keys for one in draw_seeds(key)]
    assert len(set(seeds)) == 8 * len(keys)
    assert 0.45 < np.mean([random.Random(one).random() for one in seeds]) < 0.55


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_without_a_size_the_whole_image_is_given(foreground):
    image, mask = numbered(7, 9), np.ones((7, 9), np.uint8)
    whole = Crops(None, foreground)(image, mask, (0, 0, "x"), find_spots(mask))
    assert whole[0] is image
    assert whole[1] is mask


def test_spots_of_labels_are_those_of_each_label_and_nothing_that_is_ignored_is_one():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 8, (12, 15)).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.2] = IGNORE
    spots = find_spots(mask, multilabel=True)
    for bit, places in enumerate(spots):
        assert places.tolist() == np.flatnonzero((mask >> bit & 1 == 1) & (mask != IGNORE)).tolist()
    assert len(spots) == 3
    assert [mask.reshape(-1)[places[0]] for places in find_spots(mask)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_whole_image_is_padded_to_a_canvas_by_its_edges_which_count_nowhere():
    image, mask = numbered(3, 5), np.ones((3, 5), np.uint8)
    padded, padded_mask = Crops(None, canvas=(4, 8))(image, mask, (0, 0, "x"))
    assert np.array_equal(padded[..., 0], np.pad(image[..., 0], ((0, 1), (0, 3)), mode="edge"))
    assert np.array_equal(padded_mask, np.pad(mask, ((0, 1), (0, 3)), constant_values=IGNORE))
    assert Crops(2, canvas=(4, 8))(image, mask, (0, 0, "x"))[1].tolist() == [[1, 1], [1, 1]]  # crops are not
