"""Sizes and frames: what an image is brought to, stretched or padded."""

import pytest

from unetpp.images.frame import Frame, as_size, plain, say_size


def test_a_side_stands_for_a_square_in_files_and_a_rectangle_for_itself():
    for value, size, said in ((96, (96, 96), "96 x 96"), ([96, 128], (96, 128), "96 x 128")):
        assert (as_size(value), plain(size), say_size(value)) == (size, value, said)
    assert as_size(None) is plain(None) is None


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((100, 200), (48, 96)), ((400, 100), (64, 16)), ((32, 48), (64, 96)), ((64, 96), (64, 96)), ((3000, 2), (64, 1))],
)
def test_padding_keeps_proportions_and_stretching_does_not(shape, sides):
    frame = Frame((64, 96), "pad")
    assert (frame.sides(shape), frame.canvas) == (sides, (64, 96))
    assert (Frame((64, 96)).sides(shape), Frame((64, 96)).canvas) == ((64, 96), None)
