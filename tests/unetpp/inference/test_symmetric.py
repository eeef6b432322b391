"""Laws of test-time augmentation: what is turned is turned back."""

import numpy as np
import pytest

from unetpp.inference.symmetric import COPIES, Symmetric
from unetpp.models.about import About


class Same:
    """An engine that answers the image itself, so that every copy must come back as it was."""

    name, takes_parts, about = "same", True, About({"widths": [4, 8]}, None)

    def __init__(self):
        self.seen = []

    def __call__(self, images, statistics=None):  # noqa: ARG002 - as every engine
        self.seen.append(images)
        return images[:, :1]


@pytest.mark.parametrize("symmetries", ["none", "flips", "all"])
def test_every_copy_is_another_one_and_is_turned_back_exactly(symmetries):
    image, same = np.random.default_rng(0).random((2, 3, 6, 9), np.float32), Same()
    np.testing.assert_allclose(Symmetric(same, symmetries)(image), image[:, :1], rtol=1e-6)
    assert len({one.tobytes() for one in same.seen}) == len(COPIES[symmetries])
