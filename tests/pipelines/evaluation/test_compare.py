"""Laws of comparing two models: pairs, groups, and intervals that hold what they promise."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest

from pipelines.core.files import write_json
from pipelines.evaluation.bootstrap import bootstrap, interval
from pipelines.evaluation.compare import Evaluation, compare, paired_difference
from pipelines.evaluation.scored import read_scored
from pipelines.pages.compare_page import build_page, comparison_text, conclusion
from pipelines.registry.find_report import Found, read_evaluation
from tests.pages import Outline
from tests.pipelines.pages.reports import HOSTILE, whole
from unetpp.errors import UserError


def scores(values):
    return {f"image {number:03}": float(value) for number, value in enumerate(values)}


def test_a_model_equals_itself():
    same = scores(np.random.default_rng(0).random(30))
    found = paired_difference(same, same, {})
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert (found.num_images, found.num_groups) == (30, 30)


def test_the_difference_is_of_the_common_images_and_changes_its_sign_with_the_order():
    rng = np.random.default_rng(0)
    one, other = scores(rng.random(20)), scores(rng.random(25))
    found, turned = paired_difference(one, other, {}), paired_difference(other, one, {})
    assert found.num_images == 20
    assert found.mean == pytest.approx(np.mean([one[id_] - other[id_] for id_ in one]))
    assert (found.mean, found.low, found.high) == pytest.approx((-turned.mean, -turned.high, -turned.low))
    assert found.low < found.mean < found.high


def test_the_interval_is_the_bootstraps_over_the_groups():
    one, other = np.random.default_rng(0).random((2, 40))
    groups = [f"patient {number // 10}" for number in range(40)]
    found = paired_difference(scores(one), scores(other), dict(zip(scores(one), groups, strict=True)))
    assert (found.low, found.high) == pytest.approx(interval(bootstrap({"": one - other}, groups)[""]))
    assert found.num_groups == 4
    # A group called as an image is not that image.
    found = paired_difference(scores([0.1, 0.2, 0.3]), scores([0, 0, 0]), {"image 000": "image 002"})
    assert found.num_groups == 3


def test_models_without_a_common_image_are_refused():
    with pytest.raises(UserError, match="no image in common among the 1 of one model and the 0 of the other"):
        paired_difference({"a": 0.5}, {}, {})


IDS = [f"{HOSTILE}{number:02}" for number in range(40)]


def evaluation(
    folder, shift=0.0, ids=IDS, depth: int | None = 1, sha="0" * 64, names=("L1", "L2", "mean"), version=None
) -> Evaluation:
    """What evaluate writes, read again: L1 scores 0.5, L2 0.6 and the mean 0.7 on average, and `shift` more."""
    rng = np.random.default_rng(0)
    hard = dict(zip(IDS, rng.normal(0, 0.05, len(IDS)), strict=True))
    metrics = whole(names, depth=depth)
    del metrics["objects"]  # a report of before
    metrics["test"]["sha256"] = sha
    write_json(folder / "report.json", metrics)
    with (folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "kind", "group", *(f"iou_{name}" for name in names), *(f"object_f1_{n}" for n in names)])
        for number, id_ in enumerate(ids):
            ious = [0.5 + 0.1 * index + hard[id_] + shift for index in range(len(names))]
            writer.writerow([id_, "k", f"group {number // 2}", *ious, *("" if number == 0 else 0.5 for _ in names)])
    return read_evaluation(Found(folder, version))


@pytest.fixture
def two(tmp_path):
    """Two empty folders."""
    folders = tmp_path / "one", tmp_path / "other"
    for folder in folders:
        folder.mkdir()
    return folders


def test_a_model_that_is_better_by_two_points_is_shown_to_be(two):
    found = compare(evaluation(two[0]), evaluation(two[1], 0.02))
    assert [row.names for row in found.tables["iou"]] == [("L1", "L1"), ("L2", "L2"), ("mean", "mean")]
    for row in found.tables["iou"]:
        assert (row.difference.mean, row.difference.low) == pytest.approx((0.02, 0.02))
        assert (row.difference.num_images, row.difference.num_groups) == (40, 20)
        assert row.verdict == "B is better"
    assert found.remark == "Both were scored on the same 40 test images."
    turned = compare(found.sides[1], found.sides[0])
    assert {row.verdict for row in turned.tables["iou"]} == {"A is better"}


def test_the_recommended_depths_are_compared_also_where_they_differ(two):
    found = compare(evaluation(two[0]), evaluation(two[1], depth=2))
    assert found.chosen is not None
    assert found.chosen.names == ("L1", "L2")
    assert found.chosen.difference.mean == pytest.approx(0.1)
    text = comparison_text(found, ("first", "second"))
    assert "> L1:L2" in text
    assert "L2 of B (recommended) against L1 of A (recommended): +10.0 IoU points [+10.0, +10.0] on 40 images" in text
    assert {row.verdict for row in found.tables["iou"]} == {"no difference shown"}


def test_scores_of_other_objects_are_not_compared(two):
    """A report of before took what touches for one, whatever numbers the data have."""
    one, other = evaluation(two[0]), evaluation(two[1])
    assert list(compare(one, other).tables) == ["iou", "object_f1"]
    known = {"true": "components", "predicted": "watershed", "remark": ""}
    assert list(compare(one, replace(other, report=other.report | {"objects": known})).tables) == ["iou", "object_f1"]
    found = compare(one, replace(other, report=other.report | {"objects": known | {"true": "numbers"}}))
    assert list(found.tables) == ["iou"]
    assert found.remark.startswith("Both were scored on the same 40 test images. Scores of objects are not compared: ")
    assert "evaluate the older one again." in comparison_text(found, ("first", "second"))


def test_models_that_part_objects_are_compared_by_ap_too(two):
    sides = [evaluation(folder) for folder in two]
    parted = {"true": "numbers", "predicted": "watershed", "remark": ""}
    for side, ap in zip(sides, (0.4, 0.45), strict=True):
        for each in side.scored.values():
            object.__setattr__(each, "ap", dict.fromkeys(each.iou, ap))
    found = compare(*(replace(side, report=side.report | {"objects": parted}) for side in sides))
    assert list(found.tables) == ["iou", "object_f1", "ap"]
    said = "0.0 IoU points [0.0, 0.0] on 40 images in 20 groups: no difference shown. +5.0 AP points [+5.0, +5.0]: B is"
    assert said in conclusion(found)
    assert "Average precision per image" in build_page(found, ("first", "second"))
    assert "AP points" not in conclusion(compare(*sides))


def test_a_version_is_one_depth_also_beside_another_of_the_same_run(two):
    one = evaluation(two[0], version=1)
    found = compare(one, replace(one, version_depth=2))
    assert {score: [row.names for row in rows] for score, rows in found.tables.items()} == {
        "iou": [("L1", "L2")],
        "object_f1": [("L1", "L2")],
    }
    assert found.chosen is not None
    assert found.chosen.difference.mean == pytest.approx(0.1)
    assert found.changed[0][2] - found.changed[0][1] == pytest.approx(0.1)
    assert "L2 of B (registered) against L1 of A (registered): +10.0" in comparison_text(found, ("a", "b"))
    assert "L1 of A, L2 of B" in Outline(build_page(found, ("a", "b"))).text
    with pytest.raises(
        UserError, match=r"found the depths L1, L2, mean in B; expected L3, which is that of the version"
    ):
        compare(one, replace(one, version_depth=3))


def test_where_a_model_recommends_no_depth_that_is_said(two):
    found = compare(evaluation(two[0], depth=None), evaluation(two[1]))
    assert found.chosen is None
    assert conclusion(found) == "A recommends no depth to compare."
    assert Outline(build_page(found, ("a", "b"))).open == []


def test_only_common_images_count_and_other_data_are_pointed_out(two):
    one = evaluation(two[0], ids=IDS[:30])
    other = evaluation(two[1], ids=IDS[10:], sha="1" * 64)
    found = compare(one, other)
    assert found.tables["iou"][0].difference.num_images == len(found.common) == 20
    assert "The test splits differ: 20 of A's 30 and B's 30 test images are in both" in found.remark
    del other.report["test"]
    assert "the reports do not say whether these are the same images" in compare(one, other).remark


def test_an_image_without_a_score_is_left_out_of_that_score_alone(two):
    found = compare(evaluation(two[0]), evaluation(two[1]))
    assert found.tables["object_f1"][0].difference.num_images == 39
    assert "boundary_f1" not in found.tables


def test_models_of_other_depths_are_compared_by_what_they_share(two):
    one = evaluation(two[0], names=("L1",))
    found = compare(one, evaluation(two[1]))
    assert [row.names for row in found.tables["iou"]] == [("L1", "L1")]
    with pytest.raises(UserError, match=r"found the depths L1 in A and L3 in B"):
        compare(one, evaluation(two[1], names=("L3",), depth=3))


@pytest.mark.parametrize(("text", "why"), [("", "no columns iou_L1"), ("id,iou_L1\na,much\n", "cannot be read")])
def test_a_table_that_is_none_is_refused_by_name(tmp_path, text, why):
    (tmp_path / "images.csv").write_text(text)
    with pytest.raises(UserError, match=rf"images\.csv: .*{why}"):
        read_scored(tmp_path / "images.csv")
    with pytest.raises(UserError, match=r"report\.json: no such file; run `dvc repro evaluate`"):
        read_evaluation(Found(tmp_path))


@pytest.mark.browser
def test_the_page_shows_hostile_names_and_runs_none(two, browser, tmp_path):
    found = compare(evaluation(two[0]), evaluation(two[1], 0.02, depth=2))
    text = build_page(found, (HOSTILE, "n" * 200))
    outline = Outline(text)
    assert outline.open == []
    assert "<script" not in text
    assert HOSTILE in outline.text
    assert set(IDS) & set(re.findall(re.escape(HOSTILE) + r"\d\d", outline.text))
    assert "B is better" in outline.text
    (tmp_path / "compare.html").write_text(text, encoding="utf-8")
    for width in (390, 1280):
        browser.open(tmp_path / "compare.html", width)
        assert browser.errors == []
        assert browser.overflowing() == []
