"""Laws of the intervals: they are of groups, and paired."""

import numpy as np
import pytest

from pipelines.evaluation.bootstrap import RESAMPLES, bootstrap, interval


def names(count: int) -> list[str]:
    return [f"g{number}" for number in range(count)]


def test_resamples_are_paired():
    iou = np.random.default_rng(1).random(30)
    means = bootstrap({"L1": iou - 0.25, "L2": iou}, names(30))
    np.testing.assert_allclose(means["L2"] - means["L1"], 0.25)
    again = bootstrap({"L2": iou}, names(30))
    np.testing.assert_allclose(again["L2"], means["L2"])  # in every call, so that scores are paired too


def test_with_a_group_for_each_image_it_is_the_interval_of_the_textbook():
    iou = np.random.default_rng(1).random(200)
    low, high = interval(bootstrap({"": iou}, names(200))[""])
    half = 1.96 * iou.std(ddof=1) / np.sqrt(200)
    assert (low, high) == (
        pytest.approx(iou.mean() - half, abs=0.15 * half),
        pytest.approx(iou.mean() + half, abs=0.15 * half),
    )


def test_to_see_each_patient_nine_times_makes_nothing_surer():
    iou, groups = np.random.default_rng(2).random(25), names(25)
    once = interval(bootstrap({"": iou}, groups)[""])
    nine_times = bootstrap({"": np.repeat(iou, 9)}, np.repeat(groups, 9).tolist())[""]
    assert interval(nine_times) == pytest.approx(once, abs=1e-9)
    as_images = interval(bootstrap({"": np.repeat(iou, 9)}, names(225))[""])
    assert as_images[1] - as_images[0] == pytest.approx((once[1] - once[0]) / 3, rel=0.15)


def test_groups_count_by_their_images():
    values = np.array([1.0] * 9 + [0.0])
    means = bootstrap({"": values}, ["large"] * 9 + ["small"])[""]
    assert set(np.round(means, 9)) == {0.0, 0.9, 1.0}  # the small twice, each once, the large twice


def test_the_order_of_images_and_the_names_of_groups_change_nothing_that_one_would_see():
    rng = np.random.default_rng(3)
    iou, groups = rng.random(40), [f"g{number // 2}" for number in range(40)]
    order = rng.permutation(40)
    shuffled = bootstrap({"": iou[order]}, [groups[index] for index in order])[""]
    np.testing.assert_allclose(shuffled, bootstrap({"": iou}, groups)[""])


def test_a_single_group_has_an_interval_of_no_width():
    means = bootstrap({"": np.array([0.25, 0.75])}, ["a", "a"])[""]
    assert len(means) == RESAMPLES
    assert interval(means) == (0.5, 0.5)


def test_many_groups_need_not_fit_in_memory_at_once(monkeypatch):
    iou = np.random.default_rng(4).random(50)
    whole = bootstrap({"": iou}, names(50))[""]
    monkeypatch.setattr("pipelines.evaluation.bootstrap.AT_ONCE", 50 * 7)
    np.testing.assert_allclose(bootstrap({"": iou}, names(50))[""], whole)
