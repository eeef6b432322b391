"""Laws of boundaries, against distance transforms and erosions of SciPy."""

import numpy as np
import pytest
from scipy import ndimage

from unetpp.scores.boundaries import Boundary, compare_boundaries, find_boundary, has_outline


def blobs(seed: int, shape=(40, 33)) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return noise > 0.05


def reference(hat: np.ndarray, true: np.ndarray, tolerance_px: float) -> tuple[float, float]:
    """By distance transforms of the whole image."""
    edges = [plane & np.logical_not(ndimage.binary_erosion(plane)) for plane in (hat, true)]
    extra = np.asarray(ndimage.distance_transform_edt(~edges[1]))[edges[0]]
    missed = np.asarray(ndimage.distance_transform_edt(~edges[0]))[edges[1]]
    precision, recall = (extra <= tolerance_px).mean(), (missed <= tolerance_px).mean()
    f1 = 0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)
    return f1, max(np.percentile(extra, 95), np.percentile(missed, 95))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tolerance_px", [0.5, 1, 2.5])
def test_scores_equal_those_of_distance_transforms(seed, tolerance_px):
    hat, true = blobs(seed), blobs(seed + 100)
    found = compare_boundaries(Boundary.of(hat), Boundary.of(true), tolerance_px)
    assert found == pytest.approx(reference(hat, true, tolerance_px))


def test_nothing_found_is_as_bad_as_can_be_and_nothing_to_find_is_perfect():
    empty, full = Boundary.of(np.zeros((30, 40), bool)), Boundary.of(np.ones((30, 40), bool))
    assert compare_boundaries(empty, empty, 1) == (1.0, 0.0)
    assert compare_boundaries(empty, full, 1) == (0.0, 50.0)
    assert compare_boundaries(full, empty, 1) == (0.0, 50.0)


def test_what_nobody_annotated_has_no_boundary_and_makes_none():
    plane = np.zeros((20, 20), bool)
    plane[5:15, 5:15] = True
    ignored = np.zeros_like(plane)
    ignored[:, 10:] = True
    found = find_boundary(plane, ignored)
    assert not found[:, 10:].any()
    assert not found[6:14, 9].any()  # the cut through the square is no outline
    np.testing.assert_array_equal(found[:, :10], find_boundary(plane)[:, :10])


def test_the_edge_of_the_image_and_ignored_pixels_are_no_outline():
    plane, ignored = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    plane[:3], ignored[3:] = True, True
    assert has_outline(plane)
    assert not has_outline(plane, ignored)
    assert not has_outline(np.ones((6, 6), bool))
    ignored[3, 2] = False  # one pixel of background is known
    assert has_outline(plane, ignored)
