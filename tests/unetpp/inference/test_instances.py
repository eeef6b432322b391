"""Laws of separated objects, on probabilities that are made of the truth."""

import sys

import numpy as np
import pytest
from scipy import ndimage

from unetpp.errors import UserError
from unetpp.inference.instances import choose_separation, separate
from unetpp.models.about import USUAL as FIRST
from unetpp.models.about import Separation
from unetpp.scores.object_matching import Objects, match_objects

USUAL = Separation(0.4, 4)


def discs(places, shape=(64, 64)) -> np.ndarray:
    """Numbers of discs (row, column, radius); of two that overlap a pixel is the nearer one's."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    reach = np.stack([np.hypot(rows - row, columns - column) / radius for row, column, radius in places])
    return np.where(reach.min(axis=0) <= 1, reach.argmin(axis=0) + 1, 0).astype(np.int32)


def probs_of(numbers: np.ndarray, classes: np.ndarray | None = None, num_classes: int = 1) -> np.ndarray:
    """What a network that knows all of it would give, blurred."""
    boundary, distance = np.zeros(numbers.shape, np.float32), np.zeros(numbers.shape, np.float32)
    for number in range(1, numbers.max() + 1):
        inside = numbers == number
        reach = np.asarray(ndimage.distance_transform_edt(np.pad(inside, 1)))[1:-1, 1:-1]
        distance += inside * reach / reach.max()
        boundary += inside & (reach <= 1)
    values = numbers > 0 if classes is None else classes[numbers]
    planes = [values] if num_classes == 1 else [values == index for index in range(num_classes)]
    soft = [ndimage.gaussian_filter(each.astype(np.float32), 0.7) for each in (boundary, distance)]
    return np.stack([*planes, *soft]).astype(np.float32)


def assert_same_objects(numbers: np.ndarray, true: np.ndarray, iou: float = 0.85) -> None:
    found = match_objects(Objects.of_numbers(numbers), Objects.of_numbers(true))
    assert found.num_hat == found.num_true
    assert found.best_iou.min(initial=1) > iou


TOUCHING = discs([(20, 20, 10), (20, 38, 10), (38, 29, 10), (55, 6, 5)])


def test_touching_discs_are_told_apart():
    assert len(Objects.of(TOUCHING > 0).areas) == 2  # what connected components make of them
    found = separate(probs_of(TOUCHING), 1, USUAL)
    assert (found.dtype, found.shape) == (np.int32, TOUCHING.shape)
    assert ((found > 0) == (TOUCHING > 0)).all()
    assert_same_objects(found, TOUCHING)


def test_objects_are_numbered_in_reading_order_and_alike_every_time():
    probs = probs_of(TOUCHING)
    found = separate(probs, 1, USUAL)
    first = [int(np.flatnonzero(found == number)[0]) for number in range(1, found.max() + 1)]
    assert first == sorted(first)
    assert (separate(probs.copy(), 1, USUAL) == found).all()


def test_a_ring_is_one_object_and_what_lies_in_it_another():
    rows, columns = np.mgrid[:64, :64]
    reach = np.hypot(rows - 32, columns - 32)
    ring = (((reach < 24) & (reach > 14)) + 2 * (reach < 8)).astype(np.int32)
    assert_same_objects(separate(probs_of(ring), 1, USUAL), ring)


def test_nothing_gives_no_object():
    for shape in ((5, 7), (1, 1)):
        assert separate(np.zeros((3, *shape), np.float32), 1, USUAL).tolist() == np.zeros(shape).tolist()


def test_a_part_that_reaches_no_seed_is_one_object_unless_it_is_too_small():
    probs = probs_of(TOUCHING)
    probs[2] = 0
    found = separate(probs, 1, USUAL)
    assert (found > 0).sum() == (TOUCHING > 0).sum()
    assert found.max() == 2
    assert separate(probs, 1, Separation(0.4, 200)).max() == 1
    assert separate(probs, 1, Separation(0.4, 10**6)).max() == 0


def test_objects_at_the_border_and_over_all_of_the_image():
    border = discs([(0, 0, 9), (0, 30, 9), (63, 63, 12), (30, 63, 8)])
    assert_same_objects(separate(probs_of(border), 1, USUAL), border)
    assert separate(probs_of(np.ones((32, 48), np.int32)), 1, USUAL).tolist() == np.ones((32, 48)).tolist()


def test_an_object_has_one_class():
    # Two discs touch within class 1; the third, of class 2, touches both.
    found = separate(probs_of(TOUCHING, np.array([0, 1, 1, 2, 2]), 3), 3, USUAL)
    assert_same_objects(found, TOUCHING)
    classes = np.array([0, 1, 1, 2, 2])[TOUCHING]
    assert all(len(np.unique(classes[found == number])) == 1 for number in range(1, found.max() + 1))
    # Without background class 0 has objects as the others do: what lies around the discs, and between them.
    everywhere = separate(probs_of(TOUCHING, np.array([0, 1, 1, 2, 2]), 3), 3, USUAL, background=False)
    assert everywhere.min() > 0
    assert everywhere.max() == 6


def test_the_separation_that_is_chosen_tells_them_apart_and_drops_specks():
    def images():
        for seed in range(3):
            probs = probs_of(TOUCHING)
            specks = np.random.default_rng(seed).integers(1, 63, (12, 2))
            free = TOUCHING[tuple(specks.T)] == 0
            probs[0, *specks[free].T] = 1
            yield probs, TOUCHING

    chosen = choose_separation(images(), 1)
    assert chosen.smallest_px > 1
    assert all(len(np.unique(separate(probs, 1, chosen))) - 1 == true.max() for probs, true in images())


def test_pixels_that_nobody_knows_choose_nothing_and_equals_give_the_first():
    unknown = np.full(TOUCHING.shape, -1)
    assert choose_separation([(probs_of(TOUCHING), unknown)], 1) == FIRST
    assert choose_separation([], 1) == FIRST


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(UserError, match=r"scikit-image or scipy is not installed.*PATH\[instances\]"):
        separate(probs_of(TOUCHING), 1, USUAL)
