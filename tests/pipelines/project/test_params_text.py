"""params.yaml is changed line by line: a value, its reason, missing keys; all else stays."""

import difflib

import pytest
import yaml
from dvc.utils.serialize import modify_yaml

from pipelines.project import params_text as text_of
from tests.conftest import REPOSITORY
from unetpp.errors import UserError

SHIPPED = (REPOSITORY / "params.yaml").read_text()


def changes(new: str, old: str = SHIPPED) -> list[str]:
    lines = difflib.unified_diff(old.split("\n"), new.split("\n"), lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", 41),
        ("train.learning_rate", 1e-4),
        ("prepare.size", [360, 480]),
        ("prepare.size", None),
        ("search.widths", [[16, 32, 64]]),  # a block of lines before
        ("prepare.near_duplicates", None),
        ("search.max_hours", 2),  # the last but one before a blank line, null before
        ("cluster.python", "/a path/python"),
        ("prepare.values", {0: "pet", 1: "back: ground", "#ff0000": "ignore"}),
        ("ingest.location", "/a/location/that/is/longer/than/the/column/of/comments"),
        ("prepare.classes", [f"a class with the number {number}" for number in range(9)]),
        ("prepare.values", {number: f"a class with the number {number}" for number in range(9)}),
        ("prepare.shares", {"train": 0.6, "val": 0.2, "test": 0.2}),
    ],
)
def test_a_value_changes_alone_keeps_its_comment_and_has_its_reason_above_it(key, value):
    text = text_of.set_value(SHIPPED, key, value, "a reason that is so long that it does not fit into one line " * 2)
    section, name = key.split(".")
    wanted = yaml.safe_load(SHIPPED)
    wanted[section][name] = value
    assert yaml.safe_load(text) == wanted
    comment = SHIPPED.split("\n")[text_of.entries(SHIPPED)[key].first].partition("#")[2]
    assert comment in text.split("\n")[text_of.entries(text)[key].first]
    reasons = [line for line in changes(text) if line.startswith("+  #")]
    assert 1 < len(reasons) < 7
    assert max(map(len, reasons)) < 100
    assert text_of.is_planned(text, key)
    assert not text_of.is_planned(SHIPPED, key)
    again = text_of.set_value(text, key, value, "another")
    assert len([line for line in again.split("\n") if "# plan" in line]) == 1


def test_a_value_that_a_person_changed_is_told_from_the_plans():
    text = text_of.set_value(SHIPPED, "train.epochs", 41, "a minute is that long")
    assert text_of.is_planned(text, "train.epochs")
    assert not text_of.is_planned(text.replace("epochs: 41", "epochs: 42"), "train.epochs")
    assert not text_of.is_planned(text.replace("epochs: 41", "epochs: 4"), "train.epochs")


@pytest.mark.parametrize(
    "lost",
    [
        ["  fit: "],
        ["ingest:", "prepare:"],  # a whole section, the first
        ["cluster:", None],  # the last
        ["    seed: ", "  grow: ", "  flips: ", "    region: "],
    ],
)
def test_missing_keys_come_back_with_the_packages_values_and_comments_in_their_places(lost):
    lines = SHIPPED.split("\n")
    if len(lost) == 2:
        start = lines.index(next(line for line in lines if line.startswith(lost[0])))
        end = lines.index(next(line for line in lines if line.startswith(lost[1]))) if lost[1] else len(lines)
        del lines[start:end]
        lines += [""] * (lost[1] is None)
    else:
        lines = [line for line in lines if not line.startswith(tuple(lost))]
    text, added = text_of.add_missing("\n".join(lines), SHIPPED)
    assert yaml.safe_load(text) == yaml.safe_load(SHIPPED)
    assert [line for line in text.split("\n") if line] == [line for line in SHIPPED.split("\n") if line]
    assert set(added) >= {"cluster" if lost[1:] == [None] else "ingest"} if len(lost) == 2 else len(added) == len(lost)
    assert text_of.add_missing(SHIPPED, SHIPPED) == (SHIPPED, [])


def test_what_a_person_wrote_stays():
    mine = SHIPPED.replace("  fit: stretch", "  # we tried both\n  fit: pad").replace("# over all workers", "# mine")
    text, _ = text_of.add_missing(mine.replace("  momentum: ", "  momentun: "), SHIPPED)
    text = text_of.set_value(text, "prepare.fit", "stretch", "squares")
    assert "  # we tried both\n  # plan stretch: squares\n  fit: stretch" in text
    assert "# mine" in text
    assert text_of.unknown(text, SHIPPED) == ["train.momentun"]


@pytest.mark.parametrize("text", ["a: [", "- a", "{train: {epochs: 1}}"])
def test_a_file_that_is_no_params_is_refused(text):
    with pytest.raises(UserError, match=r"params\.yaml: "):
        text_of.entries(text)


def test_what_a_plan_wrote_is_in_the_style_in_which_dvc_writes_it(tmp_path):
    text = text_of.set_value(SHIPPED, "prepare.classes", [f"class {number}" for number in range(20)], "named so")
    text = text_of.set_value(text, "prepare.values", {number: f"class {number}" for number in range(20)}, "found so")
    text = text_of.set_value(text, "search.widths", [[16, 32, 64, 128, 256]], "a reason " * 30)
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with modify_yaml(path) as params:
        params["train"]["epochs"] = 7
    assert changes(path.read_text(), text) == ["-  epochs: 20", "+  epochs: 7"]
