"""Laws of the report in a terminal."""

import json
import re
import shlex

import pytest

from pipelines.cli import build_parser
from pipelines.core.numbers import NOTHING
from pipelines.evaluation.cautions import find_cautions
from pipelines.evaluation.depth_table import describe, summary
from unetpp.errors import UserError

ROW = {
    "iou_image": 0.8711, "iou_image_low": 0.85, "iou_image_high": 0.89, "difference_iou": -0.004,
    "difference_iou_low": -0.123, "difference_iou_high": 0.001, "dice_image": 0.93, "boundary_f1": 0.8,
    "object_f1": 0.75, "dsb_ap": 0.4, "ece": 0.012, "parameters": 36_629_664, "macs": 138_000_000_000,
    "latency_ms": 1234.5, "latency_p95_ms": 2345.6, "latency_p99_ms": 3456.7, "images_per_s": 1234.5,
    "iou_image_seen": 0.88, "best_batch": 128, "peak_memory_mib": 12345.6, "size_mib": 139.88, "cold_start_ms": 12345.6,
}  # fmt: skip


def gate(name, value, passed):
    return {"name": name, "value": value, "limit": 0.8, "direction": "at least", "passed": passed, "what": ""}


@pytest.fixture
def report():
    names = ("L1", "L2", "L3", "L4", "L5", "L6", "mean")
    gates = {name: [gate("flips", 0.9, True), gate("brightness", 0.5, False)] for name in names}
    return {
        "recommendation": "L2 is recommended: " + "0.4 IoU points below L4 [0.1, 0.7], " * 5 + "3.9 times as fast.",
        "recommended_depth": 2,
        "depths": {name: ROW for name in names},
        "gates": gates,
        "num_groups": 134,
        "size_px": 512,
        "machine": {"spread": 0.02},
    }


def test_nothing_is_wider_than_a_terminal(report):
    assert max(map(len, describe(report).splitlines())) <= 100


def test_it_ends_with_the_decision_and_marks_the_depth(report):
    lines = describe(report).splitlines()
    assert describe(report).split("\n\n")[-1].startswith("L2 is recommended")
    assert [line.split()[1] for line in lines if line.startswith("> ")] == ["L2", "L2"]
    assert re.search(r"0\.871 +0\.850 to 0\.890 +-0\.4 +-12\.3 to \+0\.1", describe(report))
    assert not [line for line in describe(report | {"recommended_depth": None}).splitlines() if line[:1] == ">"]


def test_objects_have_a_table_where_they_are_more_than_connected_pixels(report):
    measured = {"dsb_ap_low": 0.35, "dsb_ap_high": 0.45, "object_f1_low": 0.7, "object_f1_high": 0.8}
    measured |= {"difference_ap": -0.05, "difference_ap_low": -0.1, "difference_ap_high": -0.01}
    report["depths"] = {name: row | measured for name, row in report["depths"].items()}
    objects = {"true": "numbers", "predicted": "components", "remark": "Depths differ more for objects. " * 5}
    text = describe(report | {"objects": objects})
    assert re.search(r"> L2 +0\.400  0\.350 to 0\.450 +-5\.0  -10\.0 to -1\.0  0\.750  0\.700 to 0\.800", text)
    assert "Depths differ more" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "objects" not in describe(report | {"objects": objects | {"true": "components"}})  # as masks say already


def test_gates_that_fail_are_named_and_others_are_not(report):
    text = describe(report)
    assert text.count("0.500!") == 7
    assert "0.900!" not in text
    assert "beyond the limit" in text
    passing = {name: rows[:1] for name, rows in report["gates"].items()}
    assert "\n  gates passed at every depth: flips\n" in describe(report | {"gates": passing})


def test_classes_are_named_with_their_scores_and_mean_iou_as_papers_have_it(report):
    names = [f"class {number}" for number in range(30)]
    classes = {name: dict.fromkeys(names, 0.5) | {"class 7": None} for name in report["depths"]}
    depths = {name: row | {"miou": 0.6789} for name, row in report["depths"].items()}
    text = describe(report | {"classes": classes, "depths": depths})
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"\n  {name} " in text for name in names)
    assert text.count("0.679") == 7
    assert "dice" not in text
    one = describe(report | {"classes": {name: {"nucleus": 0.5} for name in report["depths"]}})
    assert "mIoU" not in one


def test_what_cannot_be_measured_is_a_dash_and_a_gate_that_is_off_says_why(report):
    depths = {name: row | {"boundary_f1": None} for name, row in report["depths"].items()}
    off = gate("empty", None, None) | {"what": "off: " + "an image of one grey has no right answer, " * 3}
    text = describe(report | {"depths": depths, "gates": {name: [off] for name in depths}})
    assert max(map(len, text.splitlines())) <= 100
    assert "empty: off: an image of one grey" in text
    assert "!" not in text
    assert text.count(NOTHING) == 7


def test_what_to_be_careful_about_is_said(report):
    assert "caution" not in describe(report)
    for changed, said in (
        ({"num_groups": 1}, "1 group of test images"),
        ({"machine": {"spread": 0.6}}, "The machine was busy"),
        ({"machine": {"spread": 0.02, "others_share": 0.5}}, "The machine was busy: other work used 50% of it."),
    ):
        text = describe(report | changed)
        assert text.split("\n\n")[-1].startswith(f"caution: {said}")  # after the recommendation


def test_what_could_not_be_computed_is_a_dash(report):
    report["depths"] = {"L4": ROW | {"ece": None, "latency_p95_ms": None, "latency_p99_ms": None}}
    report["gates"] = {"L4": report["gates"]["L4"]}
    assert re.search(rf"0\.750 +{NOTHING}$", describe(report), re.MULTILINE)
    assert re.search(r"1234\.5 +– +– ", describe(report))  # noqa: RUF001 - of too few rounds


def test_the_summary_is_the_table_the_decision_and_three_commands(report, tmp_path):
    versions = {"model_name": "nuclei", "versions": {"L1": "4", "L2": "5"}, "champion": 5}
    with pytest.raises(UserError, match="dvc repro evaluate"):
        summary(tmp_path, tmp_path / "versions.json")
    for name, values in (("report", report), ("versions", versions)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    found = summary(tmp_path, tmp_path / "versions.json")
    assert found.startswith(describe(report))
    *_, registered, following = found.split("\n\n")
    assert registered == "registered as nuclei, versions L1: 4, L2: 5; champion: 5"
    assert max(map(len, found.splitlines())) <= 100
    commands = [line.split("  ")[1] for line in following.splitlines()[1:]]
    for command in commands:
        build_parser().parse_args(shlex.split(command)[1:])
    assert len(commands) == 3


def test_what_a_given_split_leaks_is_a_caution():
    assert find_cautions({"num_groups": 20, "leaks": ["1 of 2 test frames lie near."]}) == [
        "1 of 2 test frames lie near."
    ]
    assert find_cautions({"num_groups": 20}) == []
    for true, said in (("components", "masks do not number objects: touching ones count as one"), ("numbers", "")):
        found = find_cautions({"num_groups": 20, "objects": {"true": true, "predicted": "watershed"}})
        assert said in "".join(found)
        assert bool(found) == bool(said)
