"""When a candidate becomes champion: the rules alone."""

from dataclasses import replace

import pytest

from pipelines.evaluation.scored import Scored
from pipelines.registry.promotion_rules import Champion, judge

IDS = [f"image {number}" for number in range(20)]
REPORT = {"recommended_depth": 2, "recommendation": "L2 it is."}
GATE = {"name": "flips", "value": 0.02, "limit": 0.05, "passed": True, "what": "flips change little"}


def scored(iou: float, spread: float = 0.0, ids=IDS, test="same") -> Scored:
    return Scored("L2", {id: iou + spread * (-1) ** n for n, id in enumerate(ids)}, {}, {}, {}, test)


CHAMPION = Champion("3", scored(0.80))


def decide(candidate: Scored, champion: Champion | None = CHAMPION, report=REPORT, tolerance=0.01, min_images=5):
    return judge(report, candidate, champion, tolerance, min_images)


def test_better_candidate_becomes_champion_and_a_worse_one_does_not():
    assert decide(scored(0.85)).promote
    verdict = decide(scored(0.75))
    assert not verdict.promote
    assert verdict.reason.startswith("worse: IoU -0.0500 [-0.0500, -0.0500] relative to the champion, version 3 (L2)")


def test_candidate_that_is_worse_by_less_than_the_tolerance_becomes_champion():
    assert decide(scored(0.795)).promote
    assert not decide(scored(0.795), tolerance=0.001).promote


def test_candidate_that_may_be_worse_stays_challenger_though_its_mean_is_higher():
    verdict = decide(scored(0.805, spread=0.3))
    assert not verdict.promote
    assert "possibly worse" in verdict.reason


def test_a_gate_that_is_off_is_neither_passed_nor_failed():
    off = {"name": "empty", "value": None, "limit": 0.01, "passed": None, "what": "off"}
    verdict = decide(scored(0.85), report=REPORT | {"gates": {"L2": [GATE, off]}})
    assert verdict.promote
    assert verdict.reason.endswith("all 1 gates passed (empty does not apply)")
    verdict = decide(scored(0.85), report=REPORT | {"gates": {"L2": [GATE | {"passed": False}, off]}})
    assert "fails 1 of 1 gates: flips 0.02" in verdict.reason


def test_groups_count_once_however_many_images_they_have():
    """One group that is much better and nineteen of its images do not outweigh the doubt of two groups."""
    candidate = scored(0.79)
    candidate = replace(candidate, iou={**candidate.iou, **dict.fromkeys(IDS[1:], 0.9)})
    assert decide(candidate).promote
    grouped = replace(candidate, groups=dict.fromkeys(IDS[1:], "one") | {IDS[0]: "two"})
    assert not decide(grouped, tolerance=0).promote


@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_gates_decide_first(champion):
    failed = REPORT | {"gates": {"L2": [GATE, GATE | {"value": 0.2, "passed": False}], "L1": [GATE]}}
    verdict = decide(scored(0.9), champion, failed)
    assert not verdict.promote
    assert verdict.reason == "fails 1 of 2 gates: flips 0.2, limit 0.05"
    passed = decide(scored(0.9), champion, REPORT | {"gates": {"L2": [GATE]}})
    assert passed.promote
    assert "all 1 gates passed" in passed.reason


def test_report_without_gates_says_so():
    assert "its behaviour was not judged" in decide(scored(0.9), None).reason


def test_gate_that_could_not_be_measured_is_named():
    failed = REPORT | {"gates": {"L2": [GATE | {"value": None, "passed": False}]}}
    assert "flips not measured" in decide(scored(0.9), report=failed).reason


def test_no_recommended_depth_is_no_champion_even_where_there_is_none():
    report = {"recommended_depth": None, "recommendation": "No depth meets the budget."}
    verdict = decide(scored(0.9), None, report)
    assert not verdict.promote
    assert "No depth meets the budget." in verdict.reason


@pytest.mark.parametrize(("recall", "reason"), [(None, "the test images have no foreground"), (0.0, "was found")])
def test_report_of_before_that_recommends_on_no_evidence_is_no_champion(recall, reason):
    verdict = decide(scored(1.0), None, REPORT | {"depths": {"L2": {"recall": recall}}})
    assert not verdict.promote
    assert reason in verdict.reason
    assert decide(scored(1.0), None, REPORT | {"depths": {"L2": {"recall": 0.5}}}).promote


def test_first_ever_becomes_champion():
    assert decide(scored(0.1), None).promote


def test_other_test_images_are_compared_where_enough_are_common():
    other = scored(0.9, ids=IDS[:6], test="other")
    assert decide(other).promote
    assert "6 common test images" in decide(other).reason
    verdict = decide(other, min_images=7)
    assert not verdict.promote
    assert "6 in common, at least 7 are needed" in verdict.reason
    assert not decide(scored(0.9, ids=["else"], test="other"), min_images=1).promote


def test_scores_at_another_size_of_the_same_images_are_not_compared():
    own = replace(scored(0.9), sizes=dict.fromkeys(IDS, "256x320"))
    verdict = decide(own)
    assert not verdict.promote
    assert "another size" in verdict.reason
    assert decide(own, Champion("3", replace(scored(0.8), sizes=own.sizes))).promote


def test_the_same_few_test_images_are_enough():
    assert decide(scored(0.9, ids=IDS[:2]), Champion("3", scored(0.8, ids=IDS[:2])), min_images=20).promote


def test_champion_without_scores_is_not_replaced():
    verdict = decide(scored(0.9), Champion("3", None, "has no evidence/images.csv"))
    assert not verdict.promote
    assert "version 3 has no evidence/images.csv" in verdict.reason


PARTED = REPORT | {"objects": {"true": "numbers", "predicted": "watershed", "remark": ""}}


def with_ap(one: Scored, ap: float) -> Scored:
    return replace(one, ap=dict.fromkeys(one.iou, ap))


@pytest.mark.parametrize(
    ("iou", "ap", "promote", "words"),
    [
        (0.85, 0.60, True, "better: IoU +0.0500 [+0.0500, +0.0500] and AP +0.1000 [+0.1000, +0.1000] relative"),
        (0.85, 0.495, True, "not worse: IoU +0.0500"),
        (0.85, 0.45, False, "the interval of AP begins below the tolerance of -0.02"),
        (0.75, 0.60, False, "the interval of IoU begins below the tolerance of -0.01"),
    ],
)
def test_a_model_that_parts_objects_must_not_be_worse_in_iou_nor_in_ap(iou, ap, promote, words):
    champion = Champion("3", with_ap(scored(0.80), 0.5))
    verdict = judge(PARTED, with_ap(scored(iou), ap), champion, 0.01, 5, 0.02)
    assert (verdict.promote, words in verdict.reason) == (promote, True), verdict.reason
    # Of a model of masks AP decides nothing, and beside a champion of before, which has none, IoU alone does.
    assert judge(REPORT, with_ap(scored(iou), ap), champion, 0.01, 5, 0.02).promote == (iou > 0.8)
    before = judge(PARTED, with_ap(scored(iou), ap), CHAMPION, 0.01, 5, 0.02)
    assert (before.promote, "whose AP was not measured" in before.reason) == (iou > 0.8, True)
