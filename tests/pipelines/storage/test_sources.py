"""Folders and archives: files arrive unchanged, what is none of the set stays behind."""

import pytest

from tests.pipelines.storage.sources import (
    BBBC038,
    PAIR,
    SETS,
    contents,
    run,
    write_folder,
    write_source,
    write_zip,
)
from unetpp.errors import UserError


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("files", SETS.values(), ids=SETS)
@pytest.mark.parametrize("prefix", ["", "stage1_train/", "a set/2018/train/"])
def test_a_source_arrives_unchanged_without_the_folders_that_wrap_it(tmp_path, kind, files, prefix):
    path = write_source(kind, tmp_path, {prefix + name: content for name, content in files.items()})
    source = run(kind, path, tmp_path / "out")
    assert contents(tmp_path / "out") == files
    assert source["kind"] == kind
    assert len(source.get("sha256", 64 * "-")) == 64


def test_what_arrives_from_a_folder_are_copies(tmp_path):
    root = write_folder(tmp_path / "data", PAIR)
    run("folder", root, tmp_path / "out")
    (root / "images/a.png").write_bytes(b"changed later")
    assert contents(tmp_path / "out") == PAIR


def test_annotations_are_left_out_of_a_set_in_which_nothing_needs_them(tmp_path):
    files = BBBC038 | {"annotations.json": b"{}", "s1/images/notes.json": b"{}"}
    run("folder", write_folder(tmp_path / "data", files), tmp_path / "out")
    assert contents(tmp_path / "out") == BBBC038


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_systems_leave_behind_and_what_is_no_image_is_left_out(tmp_path, kind, capsys):
    junk = ("__MACOSX/images/a.png", "images/.DS_Store", "masks/Thumbs.db", "images/._a.png")
    files = PAIR | dict.fromkeys((*junk, "notes.txt", "images/list.csv"), b"x")
    run(kind, write_source(kind, tmp_path, files), tmp_path / "out")
    assert contents(tmp_path / "out") == PAIR
    assert "left out 2 files that do not belong to the dataset, such as images/list.csv" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_names_that_are_no_utf8_are_written_as_the_bytes_that_they_are(tmp_path, kind, capsys):
    latin = {f"{name.removesuffix('a.png')}caf\udce9.png": content for name, content in PAIR.items()}
    run(kind, write_source(kind, tmp_path, PAIR | latin), tmp_path / "out")
    wanted = {f"{name.removesuffix('a.png')}caf%E9.png": content for name, content in PAIR.items()}
    assert contents(tmp_path / "out") == PAIR | wanted
    assert "2 names are not UTF-8" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"found 'images/caf%E9\.png' and 'images/caf\\udce9\.png', which get the same name"
    ):
        run(kind, write_source(kind, tmp_path, PAIR | latin | wanted), tmp_path / "out 2")


def patch_entries(path, offset, value):
    """Overwrite two bytes of every entry in the central directory."""
    raw = bytearray(path.read_bytes())
    start = raw.find(b"PK\x01\x02")
    while start >= 0:
        raw[start + offset : start + offset + 2] = value
        start = raw.find(b"PK\x01\x02", start + 4)
    path.write_bytes(raw)


def test_encrypted_entries_are_refused_by_name(tmp_path):
    path = write_zip(tmp_path / "a.zip", PAIR.items())
    patch_entries(path, 8, b"\x01\x00")
    with pytest.raises(UserError, match=r"entry 'images/a\.png' is encrypted"):
        run("zip", path, tmp_path / "out")


def test_a_damaged_entry_is_refused_by_name(tmp_path):
    path = write_zip(tmp_path / "a.zip", PAIR.items())
    raw = bytearray(path.read_bytes())
    raw[60] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"entry 'images/a\.png' cannot be read"):
        run("zip", path, tmp_path / "out")


def test_a_truncated_zip_a_text_file_a_folder_and_nothing_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", PAIR.items())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.zip: found no complete zip file"):
        run("zip", path, tmp_path / "1")
    path.write_text("hello")
    with pytest.raises(UserError, match=r"a\.zip: found no complete zip file"):
        run("zip", path, tmp_path / "2")
    with pytest.raises(UserError, match=r"found a folder; for a folder set ingest\.kind=folder"):
        run("zip", tmp_path, tmp_path / "3")
    with pytest.raises(UserError, match=r"none\.zip: found no such file"):
        run("zip", tmp_path / "none.zip", tmp_path / "4")


BAD_SETS = {
    "empty": ({}, "found no files; expected images/"),
    "no masks": ({"images/a.png": b"x"}, "found no masks/ folder with files; expected images/"),
    "no images": ({"masks/a.png": b"x"}, "found no images/ folder with files; expected images/"),
    "flat": ({"a.png": b"x"}, "found 1 pictures in ./ (a.png) and no images/"),
    "no pictures": ({"images/a.png": b"x", "masks/a.txt": b"x"}, "found no image file in masks/ but masks/a.txt"),
    "bbbc038 without masks": ({"s/images/s.png": b"x"}, "found no masks/ folder"),
    "pairs or coco": (
        PAIR | {"annotations.json": b"{}"},
        "found masks/ and also annotations.json, so it may be pairs or COCO",
    ),
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(("files", "message"), BAD_SETS.values(), ids=BAD_SETS)
def test_what_is_no_set_is_refused_with_what_was_found_before_anything_is_written(tmp_path, kind, files, message):
    if kind == "folder":
        (tmp_path / "set").mkdir()
    location = write_source(kind, tmp_path, files)
    with pytest.raises(UserError) as caught:
        run(kind, location, tmp_path / "out")
    assert str(caught.value).startswith(f"{location}: {message}")
    assert contents(tmp_path / "out") == {}


def test_a_missing_folder_and_a_zip_as_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="none: found no such folder"):
        run("folder", tmp_path / "none", tmp_path / "1")
    with pytest.raises(UserError, match=r"a\.zip: found a file.*set ingest\.kind=zip"):
        run("folder", write_zip(tmp_path / "a.zip", PAIR.items()), tmp_path / "2")
