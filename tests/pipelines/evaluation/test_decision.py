"""Laws of the decision: the whole interval inside the tolerance, within the budget, and the smallest such."""

import numpy as np
import pytest

from pipelines.evaluation.decision import decide


@pytest.fixture
def settings(params):
    return params.evaluate.model_copy(update={"tolerance_iou": 0.01})


def measured(iou, latency=(1.0, 2.0, 3.0, 7.8), half=0.001):
    """Depths of these IoUs, with paired differences that spread by `half` around their mean."""
    names = [f"L{depth}" for depth in range(1, len(iou) + 1)]
    depths = {
        name: {"iou_image": i, "latency_ms": l, "peak_memory_mib": 10.0 * l, "parameters": int(1000 * l), "recall": i}
        for name, i, l in zip(names, iou, latency, strict=False)
    }
    spread = np.linspace(-half, half, 2001) / 0.95
    means = {name: i + (0 if i == max(iou) else spread) for name, i in zip(names, iou, strict=True)}
    means = {name: np.broadcast_to(one, 2001) for name, one in means.items()}
    return depths | {"mean": {"iou_image": 0.999, "latency_ms": 99.0}}, means


@pytest.mark.parametrize(
    ("iou", "half", "tolerance", "budget", "expected"),
    [
        ([0.850, 0.871, 0.874, 0.875], 0.001, 0.01, None, 2),  # the smallest within the tolerance
        ([0.870, 0.871, 0.874, 0.875], 0.001, 0.01, None, 1),
        ([0.850, 0.871, 0.874, 0.875], 0.008, 0.01, None, 3),  # L2 is 0.4 below, and may be 1.2 below
        ([0.850, 0.871, 0.874, 0.875], 0.020, 0.01, None, 4),  # nothing is sure but the best
        ([0.850, 0.871, 0.874, 0.875], 0.006, 0.01, None, 2),  # exactly the tolerance is inside it
        ([0.850, 0.871, 0.874, 0.875], 0.001, 0.0, None, 4),  # no tolerance: the best
        ([0.850, 0.875, 0.874, 0.871], 0.001, 0.0, None, 2),  # the best need not be the deepest
        ([0.850, 0.871, 0.874, 0.875], 0.001, 0.01, {"max_latency_ms": 2.5}, 2),
        ([0.850, 0.871, 0.874, 0.875], 0.001, 0.01, {"max_latency_ms": 0.5}, None),  # no depth meets the budget
        ([0.850, 0.871, 0.874, 0.875], 0.001, 0.01, {"max_latency_ms": 1.5}, None),  # the one that does is too bad
        ([0.850, 0.871, 0.874, 0.875], 0.001, 0.01, {"max_memory_mib": 20.0}, 2),
        ([0.850, 0.871, 0.874, 0.875], 0.001, 0.01, {"max_memory_mib": 19.0}, None),
        ([0.850, 0.871, 0.874, 0.875], 0.001, 0.01, {"max_parameters": 2000}, 2),
        ([0.850, 0.871, 0.874, 0.875], 0.001, 0.01, {"max_parameters": 1999, "max_latency_ms": 9.0}, None),
    ],
)
def test_the_smallest_depth_surely_within_tolerance_and_budget_is_recommended(
    settings, iou, half, tolerance, budget, expected
):
    settings = settings.model_copy(update={"tolerance_iou": tolerance} | (budget or {}))
    found = decide(*measured(iou, half=half), settings)
    assert found.depth == expected
    assert (found.nearest is None) == (expected is not None)
    assert found.sentence.startswith("No depth is recommended" if expected is None else f"L{expected} is recommended")
    assert found.sentence.endswith(".")
    assert "mean" not in found.sentence
    assert [one["name"] for one in found.candidates] == ["L1", "L2", "L3", "L4"]


def test_the_sentence_explains_a_shallower_depth(settings):
    found = decide(*measured([0.85, 0.871, 0.874, 0.875], half=0.003), settings)
    assert found.sentence == (
        "L2 is recommended: 0.4 IoU points below L4 [0.1, 0.7], within the tolerance of 1.0, 3.9 times as fast."
    )
    first, second, _, best = found.candidates
    assert (first["within_tolerance"], second["within_tolerance"], best["within_tolerance"]) == (False, True, True)
    assert second["below_best_high"] == pytest.approx(0.007)
    assert first["why"] == "2.5 IoU points below L4 [2.2, 2.8], not surely within the tolerance of 1.0"
    assert best["why"] == "the best IoU of all depths"


def test_the_sentence_says_that_the_best_is_needed(settings):
    found = decide(*measured([0.85, 0.871, 0.874, 0.875], half=0.012), settings)
    assert found.sentence == (
        "L4 is recommended: it has the best IoU of all depths, 0.875, and no smaller one is surely within the "
        "tolerance of 1.0: L3 is 0.1 IoU points below L4 [-1.1, 1.3]."
    )


def test_the_sentence_names_the_nearest_when_none_meets_the_budget(settings):
    settings = settings.model_copy(update={"max_latency_ms": 5.0, "max_parameters": 5000})
    found = decide(*measured([0.85, 0.871], latency=(6.0, 9.0)), settings)
    assert found.nearest == 1
    assert found.sentence == (
        "No depth is recommended: none meets the budget of 5 ms and 5,000 parameters; the nearest is L1, with 6.0 ms "
        "and 6,000 parameters."
    )
    assert not any(one["within_budget"] for one in found.candidates)
    assert found.candidates[0]["why"].endswith(
        "6.0 ms and 6,000 parameters, does not meet the budget of 5 ms and 5,000 parameters"
    )


def test_nearest_is_what_misses_its_worst_limit_by_the_smallest_share(settings):
    depths, means = measured([0.85, 0.871], latency=(6.0, 9.0))
    depths["L2"] |= {"latency_ms": 5.5, "parameters": 5100}
    settings = settings.model_copy(update={"max_latency_ms": 5.0, "max_parameters": 5000})
    assert decide(depths, means, settings).nearest == 2


def test_the_sentence_names_the_nearest_when_what_is_fast_is_too_bad(settings):
    settings = settings.model_copy(update={"max_latency_ms": 1.5})
    found = decide(*measured([0.85, 0.871, 0.875], half=0.003), settings)
    assert found.nearest == 1
    assert found.sentence == (
        "No depth is recommended: of those that meet the budget of 1.5 ms the nearest is L1, 2.5 IoU points below L3 "
        "[2.2, 2.8], which is not surely within the tolerance of 1.0."
    )


def test_a_slow_shallow_depth_is_passed_over(settings):
    settings = settings.model_copy(update={"max_latency_ms": 5.0})
    found = decide(*measured([0.874, 0.875], latency=(9.0, 4.0)), settings)
    assert found.depth == 2
    assert found.sentence == (
        "L2 is recommended: it has the best IoU of all depths, 0.875, and the smaller ones within the tolerance of "
        "1.0 do not meet the budget; its 4.0 ms meet the budget."
    )


def test_the_only_depth_is_recommended(settings):
    row = {"iou_image": 0.8, "latency_ms": 3.0, "peak_memory_mib": 1.0, "parameters": 1, "recall": 0.8}
    found = decide({"L4": row}, {"L4": np.full(10, 0.8)}, settings)
    assert found.depth == 4
    assert found.sentence == ("L4 is recommended: it is the only depth of this network that has a head, of IoU 0.800.")


@pytest.mark.parametrize(
    ("iou", "recall", "sentence"),
    [
        (1.0, None, "the test images have no foreground, so that what finds nothing scores 1"),
        (0.4, 0.0, "none of the foreground in the test images is found"),  # images without any score 1
    ],
)
def test_nothing_is_recommended_where_nothing_is_known(settings, iou, recall, sentence):
    depths, means = measured([iou, iou], half=0)
    found = decide({name: row | {"recall": recall} for name, row in depths.items()}, means, settings)
    assert (found.depth, found.nearest) == (None, 1)
    assert found.sentence == f"No depth is recommended: {sentence}."
    depths["L2"] |= {"recall": 0.1}
    assert decide(depths, means, settings).depth == 1


def test_the_smallest_may_be_the_best(settings):
    found = decide(*measured([0.88, 0.875]), settings)
    assert found.sentence == "L1 is recommended: it has the best IoU of all depths, 0.880, and is the smallest."
