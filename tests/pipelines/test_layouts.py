"""Two layouts, and a name for everything that does not fit."""

import pytest

from pipelines.layouts import find_samples
from unetpp.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_pairs_are_found_by_name_with_subfolders_as_part_of_the_id(tmp_path):
    touch(tmp_path, "images/b.JPG", "masks/b.png", "images/day 1/a.tif", "masks/day 1/a.png", "manifest.json")
    samples, problems = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["b", "day 1/a"]
    assert samples[1].image == tmp_path / "images/day 1/a.tif"
    assert samples[1].masks == (tmp_path / "masks/day 1/a.png",)
    assert problems == []


def test_bbbc038_folders_are_samples_with_a_mask_file_a_nucleus(tmp_path):
    touch(
        tmp_path,
        "s2/images/s2.png",
        "s2/masks/n2.png",
        "s2/masks/n1.png",
        "s1/images/s1.png",
        "s1/masks/n.png",
    )
    samples, problems = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["s1", "s2"]
    assert [path.name for path in samples[1].masks] == ["n1.png", "n2.png"]
    assert problems == []


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_named(tmp_path):
    touch(tmp_path, "images/a.png", "masks/a.png", "images/lonely.png", "masks/ghost.png")
    samples, problems = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["a"]
    assert [(one.id, one.file) for one in problems] == [
        ("ghost", "masks/ghost.png"),
        ("lonely", "images/lonely.png"),
    ]
    assert problems[0].reason.startswith("no image images/ghost.<ext>")
    assert problems[1].reason.startswith("no mask masks/lonely.png")


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a.png", "A.png")])
@pytest.mark.parametrize("folder", ["images", "masks"])
def test_names_that_differ_by_case_or_suffix_alone_are_set_aside_with_their_partner(tmp_path, folder, names):
    other = {"images": "masks", "masks": "images"}[folder]
    touch(tmp_path, *(f"{folder}/{name}" for name in names), f"{other}/a.png", "images/ok.png", "masks/ok.png")
    samples, problems = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["ok"]
    assert {one.file for one in problems} == {f"{folder}/{name}" for name in names} | {f"{other}/a.png"}
    assert all("clash" in one.reason or "differ only by case or suffix" in one.reason for one in problems)


def test_broken_bbbc038_folders_are_named(tmp_path):
    touch(tmp_path, "ok/images/ok.png", "ok/masks/n.png", "none/images/none.png", "bare/masks/n.png")
    touch(tmp_path, "two/images/1.png", "two/images/2.png", "two/masks/n.png")
    touch(tmp_path, "S/images/S.png", "S/masks/n.png", "s/images/s.png", "s/masks/n.png")
    samples, problems = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["ok"]
    assert {one.id for one in problems} == {"none", "bare", "two", "S", "s"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "found no files"),
        (["images/a.png"], "found no masks/ folder"),
        (["masks/a.png"], "found no images/ folder"),
        (["a/b/c/d.png"], "no images/ in it"),
    ],
)
def test_a_folder_without_images_or_masks_is_refused(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        find_samples(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_samples(tmp_path / "none")
