"""Mirrorings and quarter turns: the groups, how they are drawn, and that the whole one draws as before."""

import albumentations as A
import numpy as np
import pytest

from unetpp.data.crops import draw_seeds
from unetpp.data.symmetries import SYMMETRIES, draw_symmetry, find_group, group_of, move

IMAGE = np.arange(5 * 5 * 2).reshape(5, 5, 2).astype(np.uint8)
KINDS = ("none", "horizontal", "vertical", "all")


def images(group) -> set[bytes]:
    return {np.ascontiguousarray(move(IMAGE, one)).tobytes() for one in group}


@pytest.mark.parametrize("quarter_turns", [False, True])
@pytest.mark.parametrize("flips", KINDS)
def test_a_group_is_what_its_steps_generate(flips, quarter_turns):
    steps = [lambda image: image[:, ::-1]] * (flips in ("horizontal", "all"))
    steps += [lambda image: image[::-1]] * (flips in ("vertical", "all")) + [np.rot90] * quarter_turns
    made, new = {IMAGE.tobytes()}, [IMAGE]
    while new:
        found = [np.ascontiguousarray(step(one)) for one in new for step in steps]
        new = [one for one in found if one.tobytes() not in made]
        made |= {one.tobytes() for one in new}
    group = find_group(flips, quarter_turns)
    assert images(group) == made
    assert len(group) == len(made)
    drawn = [draw_symmetry(group, draw_seeds((0, epoch, "x"))[2]) for epoch in range(400)]
    shares = [drawn.count(one) / len(drawn) for one in group]
    assert max(shares) - min(shares) < 0.12  # each as likely


def test_all_eight_are_drawn_as_the_library_drew_them():
    for seed in range(40):
        step = A.D4(p=1)
        step.set_random_seed(seed)
        assert np.array_equal(step(image=IMAGE)["image"], move(IMAGE, draw_symmetry(SYMMETRIES, seed)))


def test_a_model_says_what_it_was_trained_on_also_one_of_before():
    assert group_of({"flips": True}) == group_of({}) == SYMMETRIES
    assert group_of({"flips": False}) == find_group("none", False) == ((0, 0, 0),)
    assert group_of({"flips": "horizontal", "quarter_turns": False}) == find_group("horizontal", False)
