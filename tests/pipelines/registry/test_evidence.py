"""Laws of the pictures beside a version: the colours of classes and errors are those of the pages, and are named."""

from xml.etree import ElementTree

import numpy as np
import pytest

from pipelines.registry.evidence import draw, legend
from unetpp.data.manifest import Manifest
from unetpp.images.display import ERRORS, FILL, class_colour

IMAGE = np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (30, 1, 3))


def laid_over(base, colour, strength) -> np.ndarray:
    return np.rint(base + strength * (np.array(colour[:3]) - base))


@pytest.mark.parametrize("background", [True, False])
def test_true_and_predicted_mask_are_filled_with_the_colours_of_their_classes(background):
    mask, mask_hat = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    mask[:10], mask_hat[20:], mask[10:12] = 1, 2, 255
    manifest = Manifest(size=None, channels=3, num_classes=3, splits={}, background=background)
    drawn = draw(IMAGE, mask, mask_hat, manifest).astype(float)
    factor = len(drawn) // 30
    true, predicted = drawn[::factor, : 40 * factor : factor], drawn[::factor, -40 * factor :: factor]
    base = true[10]  # unlabelled
    assert np.array_equal(true[5], laid_over(base, class_colour(1), FILL))
    assert np.array_equal(predicted[25], laid_over(base, class_colour(2), FILL))
    assert np.array_equal(predicted[5], base) == background
    names = ["<sky>", "road", "car"][int(background) :]
    said = ElementTree.fromstring(legend(manifest, names))
    assert [one.text for one in said.findall("{*}text")][1:] == names
    colours = [one.get("fill") for one in said.findall("{*}rect")]
    assert colours == ["rgb({},{},{})".format(*class_colour(number)) for number in range(int(background), 3)]


def test_a_single_class_shows_what_was_found_what_is_extra_and_what_was_missed():
    mask, mask_hat = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    mask[:20], mask_hat[10:25] = 1, 1
    manifest = Manifest(size=None, channels=3, num_classes=1, splits={})
    drawn = draw(IMAGE, mask, mask_hat, manifest).astype(float)
    rows = drawn[:: len(drawn) // 30, :: len(drawn) // 30]
    for row, name in ((5, "missed"), (15, "found"), (22, "extra")):
        assert np.array_equal(rows[row], laid_over(rows[28], ERRORS[name], ERRORS[name][3] / 255))
    assert "missed: there, not predicted" in legend(manifest, ["1"])
