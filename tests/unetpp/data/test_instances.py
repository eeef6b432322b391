"""Numbers of objects: what is packed comes back, at the mask's size and nowhere outside it."""

import numpy as np
import pytest

from unetpp.data.arrow_split import INSTANCES, Split, SplitWriter
from unetpp.data.instances import fit_numbers, pack, unpack
from unetpp.network.masks import IGNORE


@pytest.mark.parametrize("highest", [0, 255, 256, 70_000, 2**40])
def test_numbers_come_back_in_the_smallest_type_and_take_little_space(highest):
    numbers = np.zeros((200, 300), np.int64)
    numbers[20:100, 30:200] = highest
    found = unpack(pack(numbers))
    assert np.array_equal(found, numbers)
    assert found.dtype == np.min_scalar_type(highest)
    assert len(pack(numbers)) < numbers.size / 50


def test_numbers_are_those_of_the_nearest_pixel_within_the_mask():
    numbers = np.arange(1, 37).reshape(6, 6)
    mask = np.ones((2, 3), np.uint8)
    mask[0, 0], mask[1, 2] = 0, IGNORE
    assert fit_numbers(numbers, mask).tolist() == [[0, 10, 12], [26, 28, 0]]
    own = (numbers % 2).astype(np.uint8)
    assert np.array_equal(fit_numbers(numbers, own), numbers * own)
    labels = fit_numbers(np.stack([numbers, -numbers]), np.array([[1, 2, 3]], np.uint8), multilabel=True)
    assert labels.tolist() == [[[20, 0, 24]], [[0, -22, -24]]]


def test_a_split_has_a_column_for_them_where_some_sample_has_numbers(tmp_path):
    image, mask, numbers = np.zeros((4, 5, 1), np.uint8), np.ones((4, 5), np.uint8), np.arange(20).reshape(4, 5)
    for some in (True, False):
        with SplitWriter(tmp_path / "a.arrow", instances=some) as writer:
            writer.add("a", "", image, mask)
            writer.add("b", "", image, mask, pack(numbers) if some else b"")
        split = Split(tmp_path / "a.arrow")
        assert split.instances(0) is None
        assert (INSTANCES.name.encode() in (tmp_path / "a.arrow").read_bytes()) == some  # without: as it was before
        assert np.array_equal(split[1][1], mask)
    with SplitWriter(tmp_path / "a.arrow", instances=True) as writer:
        writer.add("b", "", image, mask, pack(numbers))
    found = Split(tmp_path / "a.arrow").instances(0)
    assert found is not None
    assert found.tolist() == numbers.tolist()
