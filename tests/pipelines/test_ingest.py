"""Stage ingest: whole or not at all, the same bytes each time, mistakes end with exit code 2."""

import json
import shutil
import sys

import pytest

from pipelines.core.command import run_command
from pipelines.ingest import ingest, main
from tests.conftest import REPOSITORY
from tests.pipelines.storage.sources import INGEST, PAIR, located, write_folder
from unetpp.files import sha256

SMALL = INGEST.model_copy(update={"synthetic": INGEST.synthetic.model_copy(update={"num_images": 4, "size_px": 48})})


def test_the_same_source_gives_the_same_bytes(tmp_path):
    manifests = [ingest(SMALL, tmp_path / name / "raw") for name in ("a", "b")]
    assert manifests[0] == manifests[1]
    assert sha256(tmp_path / "a/raw/manifest.json") == sha256(tmp_path / "b/raw/manifest.json")


def test_the_manifest_lists_every_file_with_its_size_and_hash(tmp_path):
    ingest(SMALL, tmp_path / "raw")
    manifest = json.loads((tmp_path / "raw/manifest.json").read_text())
    assert manifest["source"] == {"kind": "synthetic", "location": None} | SMALL.synthetic.model_dump()
    keys = [file["key"] for file in manifest["files"]]
    assert keys == sorted(keys)
    assert len(keys) == 8
    for file in manifest["files"]:
        path = tmp_path / "raw" / file["key"]
        assert file["size"] == path.stat().st_size
        assert file["sha256"] == sha256(path)


def test_the_order_in_which_files_were_made_does_not_matter(tmp_path):
    files = PAIR | {f"images/{number}.png": PAIR["images/a.png"] for number in range(9)}
    for number, order in enumerate((sorted(files), sorted(files, reverse=True))):
        write_folder(tmp_path / "one", {name: files[name] for name in order})
        ingest(located("folder", tmp_path / "one"), tmp_path / str(number))
        shutil.rmtree(tmp_path / "one")
    assert sha256(tmp_path / "0/manifest.json") == sha256(tmp_path / "1/manifest.json")


def test_a_source_that_fails_leaves_the_old_files_as_they_were(tmp_path):
    before = ingest(SMALL, tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found no files"):
        ingest(located("folder", tmp_path / "empty"), tmp_path / "raw")
    assert json.loads((tmp_path / "raw/manifest.json").read_text()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "raw"]


def test_the_command_ends_a_mistake_with_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys):
    text = (REPOSITORY / "params.yaml").read_text().replace("kind: synthetic ", "kind: folder ")
    (tmp_path / "params.yaml").write_text(text.replace("  location:  ", "  location: missing/data  "))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ingest", "--out", "data/raw", "--cache", "data/cache"])
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: missing/data: found no such folder; ingest.location must be")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.shared_data
def test_the_real_zip_gives_31_samples(tmp_path, shared_data):
    manifest = ingest(located("zip", shared_data / "bbbc038_sample.zip"), tmp_path / "raw")
    assert len({file["key"].split("/")[0] for file in manifest["files"]}) == 31
    assert {file["key"].split("/")[1] for file in manifest["files"]} == {"images", "masks"}
