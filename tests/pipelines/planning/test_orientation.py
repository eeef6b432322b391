"""Images with an up and a down are told from those without, by the images themselves."""

import numpy as np
import pytest

from pipelines.planning.orientation import LEAST, find_orientation, look_at
from tests.pipelines.planning.stand_ins import membranes, photograph


def looks_of(draw, num):
    rng = np.random.default_rng(1)
    pairs = [draw(rng) for _ in range(num)]
    return [look_at(image.reshape(*mask.shape, -1), (mask > 0).astype(np.uint8), 1) for image, mask in pairs]


@pytest.mark.parametrize("num", [30, 120])
def test_photographs_are_upright_and_membranes_are_not(num):
    assert find_orientation(looks_of(lambda rng: photograph(rng, 48, 64), num)).upright is True
    assert find_orientation(looks_of(lambda rng: membranes(rng, 48), num)).upright is False


def test_few_images_tell_nothing():
    assert find_orientation(looks_of(lambda rng: photograph(rng, 48, 64), LEAST - 1)).upright is None


def test_a_scan_has_rows_and_columns_and_no_up_or_down():
    def scan(rng):
        return rng.normal(0, 1, (48, 1)) * 40 + rng.normal(0, 4, (48, 48)) + 100, np.zeros((48, 48), np.uint8)

    found = find_orientation(looks_of(scan, 60))
    assert found.upright is False
    assert found.sideways
