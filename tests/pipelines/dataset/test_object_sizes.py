"""Objects and their sizes against drawings of which both are known."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dataset.object_sizes import (
    BINS_PER_OCTAVE,
    add_up,
    count_sizes,
    diameters_px,
    find_objects,
    histogram,
    join,
    share_smaller,
    size_quantile_px,
)

DIAMETERS = (6, 11, 20, 37)


def discs() -> np.ndarray:
    """(200, 200) uint16: discs of DIAMETERS, numbered from 1, of which the last two touch."""
    numbers = np.zeros((200, 200), np.uint16)
    y, x = np.mgrid[0:200, 0:200]
    for number, (diameter, centre) in enumerate(
        zip(DIAMETERS, ((20, 20), (60, 60), (130, 100), (130, 128)), strict=True), 1
    ):
        numbers[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= (diameter / 2) ** 2] = number
    return numbers


def found(numbers, mask=None, one_each=False):
    mask = (numbers > 0).astype(np.uint8) if mask is None else mask
    areas, way = find_objects(numbers, mask, one_each)
    return sorted(diameters_px(areas)), way


def test_numbered_discs_have_the_diameters_that_were_drawn():
    for kind in (np.uint8, np.uint16, np.int32):
        sizes, way = found(discs().astype(kind))
        assert way == "values"
        assert sizes == pytest.approx(DIAMETERS, abs=0.6)


def test_large_numbers_count_as_small_ones_do():
    numbers = discs().astype(np.int32)
    large = np.where(numbers > 0, numbers + 2**30, 0).astype(np.int32)
    assert found(large) == found(numbers)
    everywhere = np.where(numbers > 0, numbers, 5) + 2**30  # no background left
    areas, _ = find_objects(everywhere, np.ones(numbers.shape, np.uint8), one_each=False)
    assert len(areas) == 5


@pytest.mark.parametrize("value", [1, 255])
def test_of_one_value_the_discs_that_touch_are_one(value):
    sizes, way = found((discs() > 0) * np.uint8(value))
    assert way == "components"
    assert sizes[:2] == pytest.approx(DIAMETERS[:2], abs=0.6)
    assert len(sizes) == 3
    assert sizes[2] == pytest.approx(np.hypot(*DIAMETERS[2:]), abs=1)


def test_the_values_of_a_smoothed_edge_number_no_objects():
    smooth = cv2.GaussianBlur((discs() > 0) * np.uint8(255), (0, 0), 0.8)
    assert len(np.unique(smooth)) > 50
    sizes, way = found(smooth)
    assert way == "components"
    assert len(sizes) == 3


def test_files_are_objects_even_where_they_touch():
    sizes, way = found(discs(), one_each=True)
    assert way == "each"
    assert sizes == pytest.approx(DIAMETERS, abs=0.6)
    classes = np.where(discs() > 2, 2, discs() > 0).astype(np.uint8)
    assert found(discs(), classes, one_each=True) == (sizes, way)


def test_classes_are_told_apart_and_their_values_number_nothing():
    mask = np.where(discs() == 4, 2, discs() > 0).astype(np.uint8)
    sizes, way = found(np.zeros_like(mask), mask)
    assert way == "components"
    assert sizes == pytest.approx(DIAMETERS, abs=0.6)  # the touching two are of different classes


def test_an_empty_mask_has_no_objects():
    for one_each in (False, True):
        sizes, _ = found(np.zeros((8, 8), np.uint8), one_each=one_each)
        assert sizes == []


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_the_histogram_is_numpys(kind):
    values = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, (64, 65, 3)).astype(kind)
    assert np.array_equal(histogram(values), np.bincount(values.ravel(), minlength=np.iinfo(kind).max + 1))


sizes_px = st.lists(st.floats(1, 500), min_size=1, max_size=60)


@given(sizes_px, st.integers(1, 6))
def test_shares_smaller_than_a_power_of_two_are_exact(diameters, depth):
    sizes = count_sizes(np.array(diameters))
    assert share_smaller(sizes, depth) == pytest.approx(np.mean(np.array(diameters) < 2**depth))


@given(sizes_px, st.floats(0.01, 1))
def test_a_quantile_of_counted_sizes_is_within_one_bin_of_the_true_one(diameters, share):
    true = np.quantile(diameters, share, method="inverted_cdf")
    estimate = size_quantile_px(count_sizes(np.array(diameters)), share)
    assert abs(np.log2(estimate / true)) <= 1 / BINS_PER_OCTAVE + 1e-9


@given(st.lists(sizes_px, max_size=5))
def test_counts_of_a_whole_are_the_sum_of_its_parts(parts):
    whole = count_sizes(np.array([one for part in parts for one in part]))
    assert add_up(join(count_sizes(np.array(part))) for part in parts) == whole
