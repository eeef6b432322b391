"""Laws of comparing two models: pairs, groups, and intervals that hold what they promise."""

import numpy as np
import pytest

from pipelines.compare import paired_difference
from unetpp.errors import UserError


def scores(values):
    return {f"image {number:03}": float(value) for number, value in enumerate(values)}


def test_a_model_equals_itself():
    same = scores(np.random.default_rng(0).random(30))
    found = paired_difference(same, same, {})
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert (found.num_images, found.num_groups) == (30, 30)


def test_what_is_hard_for_both_does_not_widen_the_interval_of_their_difference():
    hard = np.random.default_rng(0).random(50)
    found = paired_difference(scores(hard + 0.01), scores(hard), {})
    assert found.mean == pytest.approx(0.01)
    assert found.high - found.low < 1e-12


def test_the_difference_is_of_the_common_images_and_changes_its_sign_with_the_order():
    rng = np.random.default_rng(0)
    one, other = scores(rng.random(20)), scores(rng.random(25))
    found, turned = paired_difference(one, other, {}), paired_difference(other, one, {})
    assert found.num_images == 20
    assert found.mean == pytest.approx(np.mean([one[id_] - other[id_] for id_ in one]))
    assert (found.mean, found.low, found.high) == pytest.approx((-turned.mean, -turned.high, -turned.low))
    assert found.low < found.mean < found.high


def test_images_of_a_group_count_as_one_witness():
    rng = np.random.default_rng(0)
    of_group = rng.normal(0, 0.1, 10)
    repeated = np.repeat(of_group, 20)  # 200 images, but 10 patients
    groups = {f"image {number:03}": f"patient {number // 20}" for number in range(200)}
    alone = paired_difference(scores(repeated), scores(np.zeros(200)), {})
    grouped = paired_difference(scores(repeated), scores(np.zeros(200)), groups)
    assert (alone.num_groups, grouped.num_groups) == (200, 10)
    assert grouped.mean == pytest.approx(alone.mean)
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)
    # Ten groups of twenty equal images are as ten images.
    ten = paired_difference(scores(of_group), scores(np.zeros(10)), {})
    assert (grouped.low, grouped.high) == pytest.approx((ten.low, ten.high))


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        found = paired_difference(scores(rng.normal(0.02, 0.1, 60)), scores(np.zeros(60)), {})
        covered += found.low <= 0.02 <= found.high
    assert 87 <= covered <= 100


def test_a_group_called_as_an_image_is_not_that_image():
    found = paired_difference(scores([0.1, 0.2, 0.3]), scores([0, 0, 0]), {"image 000": "image 002"})
    assert found.num_groups == 3


def test_models_without_a_common_image_are_refused():
    with pytest.raises(UserError, match="no image in common among the 1 of the one and the 0 of the other"):
        paired_difference({"a": 0.5}, {}, {})
