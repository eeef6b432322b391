"""Laws of matched objects, against a search through all pairs."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from unetpp.scores.object_matching import Objects, match_objects


def blobs(seed: int, cut: float = 0.15) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(60, 50)), 2) > cut


def all_pairs(hat: Objects, true: Objects) -> np.ndarray:
    """(true, hat) IoUs."""
    ious = np.zeros((len(true.areas), len(hat.areas)))
    for row, column in np.ndindex(*ious.shape):
        one, other = true.numbers == row + 1, hat.numbers == column + 1
        ious[row, column] = (one & other).sum() / (one | other).sum()
    return ious


@pytest.mark.parametrize("seed", range(4))
def test_hits_equal_the_best_assignment_of_all_pairs(seed):
    hat, true = Objects.of(blobs(seed, 0.12) & ~blobs(seed + 50, 0.2)), Objects.of(blobs(seed, 0.06))
    ious = all_pairs(hat, true)
    found = match_objects(hat, true)
    for index, threshold in enumerate(np.arange(10, 20) / 20):
        rows, columns = linear_sum_assignment(-(ious > threshold).astype(float))
        assert found.hits[index] == (ious[rows, columns] > threshold).sum()
    assert found.hits[0] > found.hits[-1]  # as a case that tells thresholds apart has it
    np.testing.assert_allclose(found.best_iou, ious.max(axis=1))
    total = len(true.areas) + len(hat.areas)
    assert found.f1 == pytest.approx(2 * found.hits[0] / total)
    precision = [hits / (hits + (len(true.areas) - hits) + (len(hat.areas) - hits)) for hits in found.hits]
    assert found.average_precision == pytest.approx(np.mean(precision))


def test_objects_hang_together_over_corners():
    plane = np.zeros((8, 8), bool)
    plane[1, 1] = plane[2, 2] = plane[5, 5] = True
    found = Objects.of(plane)
    assert found.areas.tolist() == [2, 1]
    assert found.numbers[1, 1] == found.numbers[2, 2] != found.numbers[5, 5]


def test_half_of_an_object_is_no_hit_and_one_pixel_more_is():
    true, half, more = (np.zeros((4, 10), bool) for _ in range(3))
    true[0], half[0, :5], more[0, :6] = True, True, True
    assert match_objects(Objects.of(half), Objects.of(true)).f1 == 0
    assert match_objects(Objects.of(more), Objects.of(true)).f1 == 1
    # IoU 0.6 is above 0.5 and 0.55, and not above 0.6.
    assert match_objects(Objects.of(more), Objects.of(true)).average_precision == pytest.approx(0.2)


def test_nothing_to_find_and_nothing_found_is_perfect_and_anything_else_is_zero():
    empty, one = Objects.of(np.zeros((5, 5), bool)), Objects.of(np.eye(5, dtype=bool))
    both = match_objects(empty, empty)
    assert (both.f1, both.average_precision, both.best_iou.tolist()) == (1, 1, [])
    for hat, true in ((empty, one), (one, empty)):
        found = match_objects(hat, true)
        assert (found.f1, found.average_precision) == (0, 0)
    assert match_objects(empty, one).best_iou.tolist() == [0]
