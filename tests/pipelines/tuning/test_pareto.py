"""The front, the choice and what explains it, as laws over points that were never trained."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core.params import override
from pipelines.core.sections.search import Search
from pipelines.pages.search_page import build_page
from pipelines.training.architecture import find_init, read_architecture
from pipelines.tuning.pareto import Trial, choose, importance, mark_front, measured, name
from pipelines.tuning.results import page_facts, write_architecture
from pipelines.tuning.space import read_space
from tests.pages import Outline
from tests.pipelines.tuning.declared import NO_LIMIT, declared
from unetpp.data.manifest import read_manifest

PAIRS = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=1, max_size=24)


def points_of(pairs, **others) -> list[dict]:
    return [
        {
            "trial": number,
            "widths": f"{4 + number} 8",
            "depth": "L1",
            "val_iou": None if iou is None else iou / 8,
            "parameters": 100 * cost,
            "macs": 1000 * cost,
            "latency_ms": float(cost),
            "memory_mib": float(cost),
            "status": "done",
            "reason": "",
            "seconds": 1.0,
            "epochs": 2,
            "on_front": 0,
            "chosen": 0,
            "params": others,
        }
        for number, (iou, cost) in enumerate(pairs, start=1)
    ]


def search_of(**changes) -> Search:
    return declared(**changes).search


@given(PAIRS)
@settings(deadline=None)
def test_a_point_is_on_the_front_unless_another_is_as_good_in_both_and_better_in_one(pairs):
    points = points_of(pairs)
    mark_front(points, "macs")
    for point in points:
        beaten = any(
            other["val_iou"] >= point["val_iou"]
            and other["macs"] <= point["macs"]
            and (other["val_iou"], other["macs"]) != (point["val_iou"], point["macs"])
            for other in points
        )
        assert point["on_front"] == (not beaten)


@given(PAIRS, st.integers(1, 8), st.floats(0, 0.5))
@settings(deadline=None)
def test_the_choice_is_on_the_front_and_keeps_its_rule(pairs, limit, tolerance):
    points = points_of(pairs)
    mark_front(points, "macs")
    best, _, _ = choose(points, search_of())
    assert best["val_iou"] == max(point["val_iou"] for point in points)
    assert best["on_front"]
    cheap, _, others = choose(points, search_of(objective="front", tolerance_iou=tolerance))
    assert cheap["on_front"]
    assert cheap["val_iou"] >= best["val_iou"] - tolerance
    near = [point for point in points if point["val_iou"] >= best["val_iou"] - tolerance]
    assert cheap["macs"] == min(point["macs"] for point in near)
    assert len(others) == min(3, len(points) - 1)
    within = [point for point in points if point["macs"] <= 1000 * limit]
    if within:
        bounded, reason, _ = choose(points, search_of(budget=NO_LIMIT | {"macs": 1000 * limit}))
        assert bounded["macs"] <= 1000 * limit
        assert bounded["val_iou"] == max(point["val_iou"] for point in within)
        assert "within the budget" in reason


def test_points_of_trials_that_died_are_on_no_front():
    points = points_of([(4, 2), (None, 1), (8, 1)])
    points[2]["status"] = "failed"  # after some good epochs
    mark_front(points, "macs")
    assert [point["on_front"] for point in points] == [1, 0, 0]
    assert len(measured(points)) == 1


def test_a_value_that_decides_all_explains_all_and_one_that_decides_nothing_explains_nothing():
    points = []
    for rate, hue, seed in [(r, h, s) for r in (0.1, 0.2) for h in (0, 9) for s in range(8)]:
        points += points_of([(8 * rate + 0.01 * (seed % 3), 1)], **{"train.learning_rate": rate, "augment.hue": hue})
    found = importance(points)
    assert found["train.learning_rate"] > 0.95
    assert found["augment.hue"] < 0.05
    assert "depth" not in found  # there is one
    assert next(iter(found)) == "train.learning_rate"


def test_a_range_is_judged_by_its_thirds():
    points = [
        point
        for number in range(30)
        for point in points_of([(number / 10, 1)], **{"train.learning_rate": 10 ** (-4 + number / 15)})
    ]
    assert importance(points)["train.learning_rate"] > 0.8


def page_of(*found) -> str:
    """By way of the file that search writes."""
    return build_page(json.loads(json.dumps(page_facts(*found))))


def test_the_page_has_encoders_in_its_table_and_chart(prepared):
    space = read_space(declared(space={"model.encoder": [None, "resnet34"]}))
    points = [
        point
        for encoder, pair in ((None, (3, 2)), ("resnet34", (5, 4)))
        for point in points_of([pair], **{"model.encoder": encoder})
    ]
    mark_front(points, "macs")
    assert [name(point) for point in points] == ["L1 of 5 8 (model.encoder null)", "L1 of 5 8 (model.encoder resnet34)"]
    page = page_of(points, [], points[1], "the best", [], space, read_manifest(prepared), (32, 32))
    assert all(
        f"<td>{one}</td>" in page and f">{one}<" in page.replace(f"<td>{one}</td>", "") for one in ("null", "resnet34")
    )
    assert "None" not in Outline(page).text


def test_the_page_is_whole_and_escapes(prepared):
    space = read_space(declared(space={"train.loss": ["ce_dice", "lovasz"]}, budget=NO_LIMIT | {"macs": 5000}))
    points = points_of([(3, 2), (5, 4), (None, 3), (2, 7)], **{"train.loss": "<b>$x$ & y</b>"})
    mark_front(points, "macs")
    chosen, reason, others = choose(points, space.params.search)
    chosen["chosen"] = 1
    page = page_of(points, [], chosen, reason, others, space, read_manifest(prepared), (32, 32))
    outline = Outline(page)
    assert outline.open == []
    assert "<b>$x$" not in page
    assert sum(tag == "svg" for tag, _ in outline.tags) == 2  # no curves, since no trial, and too few points to explain
    assert name(chosen) in outline.text
    assert reason in outline.text
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_what_search_writes_train_reads(tmp_path):
    params = declared()
    points = points_of([(3, 2), (5, 4)], **{"train.learning_rate": 0.002, "train.class_weights": [1.0, 2.0]})
    points[1] |= {"widths": "4 6 8", "depth": "L1"}
    mark_front(points, "macs")
    chosen, reason, others = choose(points, params.search)
    weights = {"a": torch.ones(2)}
    write_architecture(tmp_path / "search", chosen, reason, others, weights)
    found = read_architecture(tmp_path / "search/architecture.yaml")
    assert found.widths == (4, 6, 8)
    assert found.params == {"train.learning_rate": 0.002, "train.class_weights": [1.0, 2.0]}
    assert override(params, found.params).train.class_weights == (1.0, 2.0)
    text = (tmp_path / "search/architecture.yaml").read_text()
    assert "Train takes the whole widths" in text  # the chosen depth is not the deepest
    assert text.count("# runner-up:") == 1
    begins = {
        init: params.model_copy(update={"train": params.train.model_copy(update={"init": init})})
        for init in ("search", None)
    }
    init = find_init(tmp_path / "search/architecture.yaml", found, begins["search"])
    assert init is not None
    assert torch.equal(torch.load(init.file, weights_only=True)["a"], weights["a"])
    assert find_init(tmp_path / "search/architecture.yaml", found, begins[None]) is None


def test_the_page_tells_what_became_of_every_trial(prepared):
    space = read_space(declared(scheduler="asha", epochs=3))
    curve = [{"epoch": n, "val_iou_L1": 0.1 * n, "val_iou_L2": 0.2 * n} for n in (1, 2, 3)]
    trials = [
        Trial(1, {"widths": [4, 6, 8]}, "done", "", 9.0, curve, {"L1": 0.3, "L2": 0.6}),
        Trial(2, {"widths": [5, 6, 8]}, "stopped", "early by ASHA after 1 epochs", 3.0, curve[:1], {"L1": 0.1}),
        Trial(3, {"widths": [6, 6]}, "failed", "out of memory in epoch 1: none left", 1.0),
        Trial(4, {"widths": [90, 99]}, "left out", "no depth is within search.budget: no trial"),
    ]
    points = points_of([(3, 2), (1, 4), (None, 3), (None, 9)])
    mark_front(points, "macs")
    chosen, reason, others = choose(points, space.params.search)
    chosen["chosen"] = 1
    outline = Outline(page_of(points, trials, chosen, reason, others, space, read_manifest(prepared), (32, 32)))
    assert outline.open == []
    for trial in trials:
        assert f"{trial.status}: {trial.reason}" in outline.text or not trial.reason
    assert "L2 of trial 1" in outline.text  # its curves
    assert "4 trials, 4 points" in outline.text


@pytest.mark.browser
def test_the_page_fits_a_phone_and_a_desk_and_asks_for_nothing(browser, prepared, tmp_path):
    space = read_space(declared(space={"train.learning_rate": [0.1, 0.2], "train.loss": ["ce_dice", "lovasz"]}))
    points = points_of([(n % 7, n) for n in range(1, 13)], **{"train.learning_rate": 0.1, "train.loss": "lovasz"})
    mark_front(points, "macs")
    chosen, reason, others = choose(points, space.params.search)
    chosen["chosen"] = 1
    path = tmp_path / "search.html"
    path.write_text(page_of(points, [], chosen, reason, others, space, read_manifest(prepared), (32, 32)))
    for width in (390, 1280):
        browser.open(path, width)
        assert browser.errors == []
        assert browser.overflowing() == []
