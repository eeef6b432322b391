"""Laws of the decision: the whole interval inside the tolerance, within the budget, and the smallest such."""

import numpy as np
import pytest

from pipelines.evaluation.decision import compare_with_masks, decide


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
    return depths | {"mean": {"iou_image": 0.999, "latency_ms": 99.0}}, {"iou_image": means}


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


FOUR = [0.85, 0.871, 0.874, 0.875]


@pytest.mark.parametrize(
    ("iou", "latency", "half", "budget", "words"),
    [
        # A shallower depth: by how much it is worse, and how much faster.
        (FOUR, None, 0.003, {}, ["L2 is recommended", "0.4", "L4 [0.1, 0.7]", "of 1.0", "3.9 times as fast"]),
        # The best: that no smaller one is sure, and the nearest of these.
        (FOUR, None, 0.012, {}, ["L4 is recommended", "best IoU", "0.875", "no smaller one", "L3", "[-1.1, 1.3]"]),
        ([0.88, 0.875], None, 0.001, {}, ["L1 is recommended", "best IoU", "0.880", "the smallest"]),
        # A smaller one would do, but for the budget.
        (
            [0.874, 0.875],
            (9.0, 4.0),
            0.001,
            {"max_latency_ms": 5.0},
            ["L2 is", "not meet the budget", "4.0 ms meet"],
        ),
        # None meets the budget; none that meets it is good enough.
        (
            [0.85, 0.871],
            (6.0, 9.0),
            0.001,
            {"max_latency_ms": 5.0, "max_parameters": 5000},
            ["No depth", "none meets", "5 ms and 5,000 parameters", "nearest is L1", "6.0 ms and 6,000 parameters"],
        ),
        (
            [0.85, 0.871, 0.875],
            None,
            0.003,
            {"max_latency_ms": 1.5},
            ["No depth", "of those that meet the budget of 1.5 ms the nearest is L1", "2.5", "L3 [2.2, 2.8]"],
        ),
    ],
    ids=["shallower", "best", "best and smallest", "budget", "no budget", "too bad"],
)
def test_the_sentence_says_what_decided_with_the_numbers(settings, iou, latency, half, budget, words):
    depths, means = measured(iou, latency or (1.0, 2.0, 3.0, 7.8), half)
    found = decide(depths, means, settings.model_copy(update=budget))
    assert [one for one in words if one not in found.sentence] == [], found.sentence
    assert found.nearest == (1 if "No depth" in words else None)


def test_every_depth_says_why_it_is_or_is_not_the_one(settings):
    found = decide(*measured(FOUR, half=0.003), settings)
    assert [one["within_tolerance"] for one in found.candidates] == [False, True, True, True]
    assert found.candidates[1]["below_best_high"] == pytest.approx(0.007)
    first, best = found.candidates[0]["why"], found.candidates[3]["why"]
    assert ("L4 [2.2, 2.8]" in first, "with 95 % confidence" in first, "the best" in best) == (True, True, True)
    short = settings.model_copy(update={"max_latency_ms": 0.5})
    assert not any(one["within_budget"] for one in decide(*measured(FOUR), short).candidates)


def test_nearest_is_what_misses_its_worst_limit_by_the_smallest_share(settings):
    depths, means = measured([0.85, 0.871], latency=(6.0, 9.0))
    depths["L2"] |= {"latency_ms": 5.5, "parameters": 5100}
    settings = settings.model_copy(update={"max_latency_ms": 5.0, "max_parameters": 5000})
    assert decide(depths, means, settings).nearest == 2


def test_the_only_depth_is_recommended(settings):
    row = {"iou_image": 0.8, "latency_ms": 3.0, "peak_memory_mib": 1.0, "parameters": 1, "recall": 0.8}
    found = decide({"L4": row}, {"iou_image": {"L4": np.full(10, 0.8)}}, settings)
    assert found.depth == 4
    assert "the only depth" in found.sentence


@pytest.mark.parametrize(
    ("iou", "recall", "sentence"),
    [
        (1.0, None, "the test images have no foreground, so a network that finds nothing scores 1"),
        (0.4, 0.0, "none of the foreground in the test images was found"),  # images without any score 1
    ],
)
def test_nothing_is_recommended_where_nothing_is_known(settings, iou, recall, sentence):
    depths, means = measured([iou, iou], half=0)
    found = decide({name: row | {"recall": recall} for name, row in depths.items()}, means, settings)
    assert (found.depth, found.nearest) == (None, 1)
    assert found.sentence == f"No depth is recommended: {sentence}."
    depths["L2"] |= {"recall": 0.1}
    assert decide(depths, means, settings).depth == 1


def parted(iou, ap, half=0.001):
    """`measured`, of a model that parts objects, with these average precisions."""
    depths, means = measured(iou, half=half)
    spread = np.linspace(-half, half, 2001) / 0.95
    of_ap = {f"L{index}": one + (0 if one == max(ap) else spread) for index, one in enumerate(ap, 1)}
    for name, value in zip(depths, [*ap, 0.999], strict=True):
        depths[name]["dsb_ap"] = value
    return depths, means | {"dsb_ap": {name: np.broadcast_to(one, 2001) for name, one in of_ap.items()}}


@pytest.mark.parametrize(
    ("ap", "expected", "words"),
    [
        # Good enough in both; then the one that is in IoU alone, whatever its IoU.
        ([0.50, 0.545, 0.548, 0.55], 2, ["0.4 IoU points below L4", "0.5 AP points below L4", "of 1.0 in both"]),
        ([0.40, 0.45, 0.545, 0.55], 3, ["0.1 IoU points below L4", "0.5 AP points below L4 [0.4, 0.6]"]),
        ([0.40, 0.45, 0.50, 0.55], 4, ["it has the best IoU and AP of all depths, 0.875 and 0.550", "L3 is"]),
        ([0.40, 0.45, 0.555, 0.55], 3, ["0.1 IoU points below L4", "with the best AP"]),
        # None is near enough to the best in both: objects are what it is for.
        ([0.55, 0.45, 0.45, 0.45], 1, ["the best AP of all depths, 0.550, and no depth is", "2.5 IoU points below L4"]),
    ],
)
def test_depths_of_a_model_that_parts_objects_are_judged_by_iou_and_by_ap(settings, ap, expected, words):
    found = decide(*parted(FOUR, ap), settings, instances=True)
    assert found.depth == expected
    assert [one for one in words if one not in found.sentence] == [], found.sentence
    assert decide(*parted(FOUR, ap), settings).depth == 2  # of a model of masks AP decides nothing


def test_the_reason_says_which_score_excluded_a_depth(settings):
    settings = settings.model_copy(update={"tolerance_ap": 0.02})
    found = decide(*parted(FOUR, [0.5, 0.5, 0.548, 0.55]), settings, instances=True)
    assert [one["within_tolerance"] for one in found.candidates] == [False, False, True, True]
    why = found.candidates[1]["why"]
    assert "0.4 IoU points below L4 [0.3, 0.5], within the tolerance of 1.0; " in why
    assert "5.0 AP points below L4 [4.9, 5.1], not within the tolerance of 2.0 with 95 % confidence" in why
    assert (found.candidates[1]["below_best_ap"], found.depth) == (pytest.approx(0.05), 3)
    assert "tolerances of 1.0 in IoU and 2.0 in AP" in found.sentence


def test_the_report_says_where_depths_differ_more_for_objects_than_for_masks():
    said = compare_with_masks(*parted(FOUR, [0.40, 0.45, 0.545, 0.55]))
    assert said.startswith("Depths differ more for objects than for masks: L1 is 15.0 [14.9, 15.1] AP points below L4")
    assert "2.5 [2.4, 2.6] IoU points, 12.5 [" in said
    # By intervals: a difference that may be none, or no larger than that of the masks, is not told.
    assert compare_with_masks(*parted(FOUR, [0.40, 0.45, 0.545, 0.55], half=0.2)) == ""
    assert compare_with_masks(*parted(FOUR, [0.54, 0.547, 0.549, 0.55])) == ""
