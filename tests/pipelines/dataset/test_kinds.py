"""Kinds: none, by folder, by a table, or of microscopy, and what follows from them."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipelines.core.params import load_params
from pipelines.core.tables import read_rows
from pipelines.dataset.fingerprint import read_fingerprint
from pipelines.dataset.kinds import find_kind, find_kinds
from pipelines.dataset.layouts import Sample
from pipelines.ingest import ingest
from pipelines.pages.data_page import build_page
from pipelines.prepare import main, prepare
from tests.conftest import REPOSITORY
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import read_manifest
from unetpp.errors import UserError

PARAMS = load_params(REPOSITORY / "params.yaml")
LOOKS = ("fluorescence", "tissue", "bright-field")


def samples(*ids):
    return [Sample(id, Path(f"images/{id}.png"), ()) for id in ids]


def test_a_folder_is_a_kind_and_one_that_names_a_split_is_not():
    found = find_kinds(samples("cats/a", "train/cats/b", "dogs/young/c", "test/d", "e"), "folder")
    assert found == ["cats", "cats", "dogs", "no folder", "no folder"]
    with pytest.raises(UserError, match=r"prepare\.kinds: found folder, but no id has one, such as 'train/a'"):
        find_kinds(samples("train/a", "b"), "folder")


def test_a_table_gives_kinds_and_a_wrong_one_is_refused_as_that_of_groups_is(tmp_path):
    table = tmp_path / "kinds.csv"
    table.write_text("id,kind\na,cat\nb,dog\n")
    assert find_kinds(samples("b", "a"), str(table)) == ["dog", "cat"]
    with pytest.raises(UserError, match=r"kinds\.csv: found no row for 1 of 2 ids: c; expected a row id,kind"):
        find_kinds(samples("a", "c"), str(table))
    with pytest.raises(UserError, match=r"^folders: found no such file; expected .* prepare\.kinds, which is none"):
        find_kinds(samples("a"), "folders")
    table.write_text("id,group\na,cat\n")
    with pytest.raises(UserError, match=r"found the columns id, group; .* the columns id and kind"):
        find_kinds(samples("a"), str(table))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_microscopy_is_told_of_any_number_of_channels(channels):
    assert find_kind(np.full((8, 8, channels), 20, np.uint8)) == "fluorescence"
    assert find_kind(np.full((8, 8, channels), 220, np.uint8)) == "bright-field"


def test_looks_are_dark_or_bright_and_grey_or_colour():
    colours = {"dark grey": (20, 20, 20), "dark colour": (60, 10, 5), "bright grey": (200,) * 3}
    colours |= {"bright colour": (220, 150, 90)}
    assert {find_kind(np.full((8, 8, 3), one, np.uint8), "looks") for one in colours.values()} == set(colours)
    for look, one in colours.items():
        assert find_kind(np.full((8, 8, 3), one, np.uint8), "looks") == look


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Synthetic images of three looks, whose names are letters."""
    synthetic = PARAMS.ingest.synthetic.model_copy(update={"num_images": 24, "size_px": 32})
    folder = tmp_path_factory.mktemp("kinds") / "raw"
    ingest(PARAMS.ingest.model_copy(update={"synthetic": synthetic}), folder)
    return folder


def test_without_kinds_nothing_speaks_of_them(raw, tmp_path, monkeypatch, capsys):
    text = (REPOSITORY / "params.yaml").read_text().replace("size: 96 ", "size: 32 ")
    (tmp_path / "params.yaml").write_text(text.replace("kinds: microscopy", "kinds: none"))
    monkeypatch.chdir(tmp_path)
    arguments = ["--raw", str(raw), "--out", "out", "--split", "split.csv", "--metrics", "metrics.json"]
    monkeypatch.setattr("sys.argv", ["prepare", *arguments])
    main()
    page = re.sub(r"src=\S+", "", build_page(read_fingerprint(tmp_path / "out"), tmp_path / "out"))  # no pictures
    said = [capsys.readouterr().out, page, *((tmp_path / name).read_text() for name in ("split.csv", "metrics.json"))]
    for text in said:
        assert not re.search(rf"\bkinds?\b|unnamed|{'|'.join(LOOKS)}", text, re.IGNORECASE)
    assert all(found.kinds == {} for found in read_manifest(tmp_path / "out").splits.values())


def test_splits_and_tables_have_the_kinds_of_a_table(raw, tmp_path):
    ids = sorted(path.stem for path in (raw / "images").iterdir())
    kinds = {id: "dog" if number % 2 else "cat" for number, id in enumerate(ids)}
    (tmp_path / "kinds.csv").write_text("id,kind\n" + "".join(f"{id},{kind}\n" for id, kind in kinds.items()))
    settings = {"size": 32, "kinds": str(tmp_path / "kinds.csv")}
    manifest = prepare(PARAMS.prepare.model_copy(update=settings), raw, tmp_path / "out")
    assert {row["id"]: row["kind"] for row in read_rows(tmp_path / "out/split.csv")} == kinds
    split, fingerprint = Split(tmp_path / "out/train.arrow"), read_fingerprint(tmp_path / "out")
    assert split.kinds == [kinds[id] for id in split.ids]
    assert manifest.splits["train"].kinds == {kind: split.kinds.count(kind) for kind in ("cat", "dog")}
    assert [row["kind"] for row in fingerprint["objects"]["kinds"]] == ["cat", "dog"]
    assert {row["kind"] for row in fingerprint["intensity"]} == {"cat", "dog"}
    assert [row["value"] for row in fingerprint["counts"]["Kind"]] == ["cat", "dog"]
