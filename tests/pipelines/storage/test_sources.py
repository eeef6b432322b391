"""Folders and zips: files arrive unchanged, and nothing is written outside."""

import io
import stat
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipelines.core.params import load_params
from pipelines.storage import archives
from pipelines.storage.sources import fetch
from tests.conftest import REPOSITORY
from unetpp.errors import UserError

PARAMS = load_params(REPOSITORY / "params.yaml").ingest


def picture(value=0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PAIR = {"images/a.png": picture(9), "masks/a.png": picture(1)}
BBBC038 = {"s1/images/s1.png": picture(9), "s1/masks/n1.png": picture(1), "s1/masks/n2.png": picture(2)}
CLASSES = PAIR | {"masks/nucleus/b.png": picture(1), "masks/membrane/b.png": picture(2)}
COCO = {"images/a.png": picture(9), "images/day 1/b.png": picture(8), "annotations.json": b"{}"}
COCO_PARTS = {"images/a.png": picture(9), "annotations/train.json": b"{}", "annotations/val.json": b"[]"}
SETS = {"pairs": PAIR, "bbbc038": BBBC038, "classes": CLASSES, "coco": COCO, "coco in parts": COCO_PARTS}


def write_folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path, entries):
    """Entries are (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content)
    return path


def run(kind, location, out):
    return fetch(PARAMS.model_copy(update={"kind": kind, "location": str(location)}), out, out.parent).description


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("files", SETS.values(), ids=SETS)
@pytest.mark.parametrize("prefix", ["", "stage1_train/"])
def test_a_zip_arrives_unchanged_without_the_folder_that_wraps_it(tmp_path, files, prefix):
    path = write_zip(tmp_path / "a.zip", {prefix + name: content for name, content in files.items()})
    source = run("zip", path, tmp_path / "out")
    assert contents(tmp_path / "out") == files
    assert source["kind"] == "zip"
    assert len(source["sha256"]) == 64


@pytest.mark.parametrize("files", SETS.values(), ids=SETS)
def test_a_folder_arrives_unchanged_as_copies(tmp_path, files):
    root = write_folder(tmp_path / "data", files)
    run("folder", root, tmp_path / "out")
    assert contents(tmp_path / "out") == files
    name = next(iter(files))
    (root / name).write_bytes(b"changed later")
    assert (tmp_path / "out" / name).read_bytes() == files[name]


def test_annotations_are_left_out_of_a_set_in_which_nothing_needs_them(tmp_path):
    files = BBBC038 | {"annotations.json": b"{}", "s1/images/notes.json": b"{}"}
    run("folder", write_folder(tmp_path / "data", files), tmp_path / "out")
    assert contents(tmp_path / "out") == BBBC038


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pairs_with_annotations_are_refused_before_anything_is_written(tmp_path, kind):
    files = PAIR | {"annotations.json": b"{}"}
    location = (write_folder if kind == "folder" else write_zip)(tmp_path / "data", files)
    with pytest.raises(UserError, match=r"found masks/ and also annotations\.json, so it may be pairs or COCO"):
        run(kind, location, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_systems_leave_behind_and_what_is_no_image_is_left_out(tmp_path, kind, capsys):
    junk = {
        "__MACOSX/images/a.png": b"x",
        "images/.DS_Store": b"x",
        "masks/Thumbs.db": b"x",
        "images/._a.png": b"x",
    }
    files = PAIR | junk | {"notes.txt": b"x", "images/list.csv": b"x"}
    if kind == "zip":
        location = write_zip(tmp_path / "a.zip", files)
    else:
        location = write_folder(tmp_path / "data", files)
    run(kind, location, tmp_path / "out")
    assert contents(tmp_path / "out") == PAIR
    assert "left out 2 files that are no images of the set, such as images/list.csv" in capsys.readouterr().out


def link_entry():
    link = zipfile.ZipInfo("images/link.png")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return link


UNSAFE = {
    "parent": ("../evil.png", "written outside"),
    "parent inside": ("images/../../evil.png", "written outside"),
    "absolute": ("/tmp/evil.png", "absolute name"),
    "drive": ("C:/evil.png", "absolute name"),
    "backslash": ("..\\evil.png", "backslash"),
    "link": (link_entry(), "is a link"),
    "case": ("images/A.png", "clashes with 'images/a.png'"),
    "file and folder": ("images/a.png/b.png", "is a file and also the folder"),
}


@pytest.mark.parametrize(("entry", "reason"), UNSAFE.values(), ids=UNSAFE)
def test_an_unsafe_entry_is_refused_by_name_and_nothing_is_written(tmp_path, entry, reason):
    path = write_zip(tmp_path / "a.zip", [*PAIR.items(), (entry, b"/etc/passwd")])
    with pytest.raises(UserError, match=r"a\.zip: entry .*") as caught:
        run("zip", path, tmp_path / "deep/out")
    assert reason in str(caught.value)
    name = entry if isinstance(entry, str) else entry.filename
    assert repr(name) in str(caught.value)
    assert contents(tmp_path) == {"a.zip": path.read_bytes()}


def patch_entries(path, offset, value):
    """Overwrite two bytes of every entry in the central directory."""
    raw = bytearray(path.read_bytes())
    start = raw.find(b"PK\x01\x02")
    while start >= 0:
        raw[start + offset : start + offset + 2] = value
        start = raw.find(b"PK\x01\x02", start + 4)
    path.write_bytes(raw)


def test_encrypted_entries_are_refused_by_name(tmp_path):
    path = write_zip(tmp_path / "a.zip", PAIR)
    patch_entries(path, 8, b"\x01\x00")
    with pytest.raises(UserError, match=r"entry 'images/a\.png' is encrypted"):
        run("zip", path, tmp_path / "out")


def test_a_zip_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", PAIR | {"images/bomb.png": bytes(10**6)})
    for name, value in (("MAX_ENTRIES", 2), ("MAX_ENTRY_BYTES", 10**5), ("RATIO_MATTERS_BYTES", 10**5)):
        with monkeypatch.context() as patch:
            patch.setattr(archives, name, value)
            with pytest.raises(UserError, match=r"a\.zip: .*") as caught:
                run("zip", path, tmp_path / name)
            assert name == "MAX_ENTRIES" or "images/bomb.png" in str(caught.value)


def test_a_damaged_entry_is_refused_by_name(tmp_path):
    path = write_zip(tmp_path / "a.zip", PAIR)
    raw = bytearray(path.read_bytes())
    raw[60] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"entry 'images/a\.png' cannot be read"):
        run("zip", path, tmp_path / "out")


def test_a_truncated_zip_a_text_file_a_folder_and_nothing_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", PAIR)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.zip: found no whole zip file"):
        run("zip", path, tmp_path / "1")
    path.write_text("hello")
    with pytest.raises(UserError, match=r"a\.zip: found no whole zip file"):
        run("zip", path, tmp_path / "2")
    with pytest.raises(UserError, match=r"found a folder; for a folder set ingest\.kind=folder"):
        run("zip", tmp_path, tmp_path / "3")
    with pytest.raises(UserError, match=r"none\.zip: found no such file"):
        run("zip", tmp_path / "none.zip", tmp_path / "4")


BAD_SETS = {
    "empty": ({}, "found no files; expected images/"),
    "no masks": ({"images/a.png": b"x"}, "found no masks/ folder with files; expected images/"),
    "no images": ({"masks/a.png": b"x"}, "found no images/ folder with files; expected images/"),
    "flat": ({"a.png": b"x"}, "found a.png and no images/"),
    "gif masks": (
        {"images/a.png": b"x", "masks/a.gif": b"x"},
        "found no image file in masks/ but masks/a.gif",
    ),
    "bbbc038 without masks": ({"s/images/s.png": b"x"}, "found no masks/ folder"),
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(("files", "message"), BAD_SETS.values(), ids=BAD_SETS)
def test_a_set_without_images_or_masks_is_refused_with_what_was_found_and_expected(tmp_path, kind, files, message):
    (tmp_path / "data").mkdir()
    location = write_folder(tmp_path / "data", files) if kind == "folder" else write_zip(tmp_path / "data.zip", files)
    with pytest.raises(UserError) as caught:
        run(kind, location, tmp_path / "out")
    assert str(caught.value).startswith(f"{location}: {message}")


def test_a_missing_folder_a_zip_as_a_folder_and_a_dangling_link_are_refused(tmp_path):
    with pytest.raises(UserError, match="none: found no such folder"):
        run("folder", tmp_path / "none", tmp_path / "1")
    with pytest.raises(UserError, match=r"a\.zip: found a file.*set ingest\.kind=zip"):
        run("folder", write_zip(tmp_path / "a.zip", PAIR), tmp_path / "2")
    root = write_folder(tmp_path / "data", PAIR)
    (root / "images/b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"b\.png: cannot be read \(No such file"):
        run("folder", root, tmp_path / "3")
