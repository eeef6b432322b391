"""Layouts, and a name for everything that does not fit into one."""

import json
import unicodedata

import numpy as np
import pytest

from pipelines.dataset.layouts import find_samples
from tests.unetpp.images.tiffs import write_tiff
from unetpp.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


CLASSES = ("nucleus", "membrane")
# The files, prepare.classes, and the id of each sample with its mask files.
SETS = {
    "pairs": (
        ["images/b.JPG", "masks/b.png", "images/day 1/a.tif", "masks/day 1/a.png", "manifest.json"],
        None,
        {"b": ["masks/b.png"], "day 1/a": ["masks/day 1/a.png"]},
    ),
    "pairs, with names of classes that are no folders": (
        ["images/b.tif", "masks/b.png", "images/day 1/a.tif", "masks/day 1/a.png"],
        CLASSES,
        {"b": ["masks/b.png"], "day 1/a": ["masks/day 1/a.png"]},
    ),
    "BBBC038": (
        ["s2/images/s2.png", "s2/masks/n2.png", "s2/masks/n1.png", "s1/images/s1.png", "s1/masks/n.png"],
        None,
        {"s1": ["s1/masks/n.png"], "s2": ["s2/masks/n1.png", "s2/masks/n2.png"]},
    ),
    "classes": (
        ["images/day 1/b.tif", "masks/membrane/day 1/b.png", "masks/nucleus/day 1/b.tif"],
        CLASSES,
        {"day 1/b": ["masks/nucleus/day 1/b.tif", "masks/membrane/day 1/b.png"]},
    ),
}


@pytest.mark.parametrize(("names", "classes", "expected"), SETS.values(), ids=SETS)
def test_samples_are_found_with_their_masks_and_subfolders_are_part_of_their_ids(tmp_path, names, classes, expected):
    touch(tmp_path, *names)
    samples, problems = find_samples(tmp_path, 3, classes)
    assert problems == []
    assert [(one.id, [path.relative_to(tmp_path).as_posix() for path in one.masks]) for one in samples] == list(
        expected.items()
    )
    assert {one.classes for one in samples} == {(1, 2) if "masks/nucleus" in str(expected) else None}
    assert all(one.image.relative_to(tmp_path).as_posix() in names for one in samples)


def test_files_without_a_partner_are_named(tmp_path):
    touch(tmp_path, "images/a.png", "masks/a.png", "images/lonely.png", "masks/ghost.png")
    samples, problems = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["a"]
    assert [(one.id, one.file, one.reason) for one in problems] == [
        ("ghost", "masks/ghost.png", "no image images/ghost.<ext>"),
        ("lonely", "images/lonely.png", "no mask masks/lonely.png"),
    ]


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a.png", "A.png")])
@pytest.mark.parametrize("folder", ["images", "masks"])
def test_names_that_differ_by_case_or_suffix_alone_are_set_aside_with_their_partner(tmp_path, folder, names):
    other = {"images": "masks", "masks": "images"}[folder]
    touch(tmp_path, *(f"{folder}/{name}" for name in names), f"{other}/a.png", "images/ok.png", "masks/ok.png")
    samples, problems = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["ok"]
    assert {one.file for one in problems} == {f"{folder}/{name}" for name in names} | {f"{other}/a.png"}
    assert all("clash" in one.reason or "differ only by case, suffix or Unicode form" in one.reason for one in problems)


@pytest.mark.parametrize(
    "names",
    [
        ["images/e\u0301.png", "images/\u00e9.png", "masks/\u00e9.png"],
        ["e\u0301/images/1.png", "e\u0301/masks/1.png", "\u00e9/images/1.png", "\u00e9/masks/1.png"],
    ],
)
def test_names_that_differ_by_their_form_of_unicode_alone_are_set_aside(tmp_path, names):
    others = (
        ["images/ok.png", "masks/ok.png"] if names[0].startswith("images") else ["ok/images/1.png", "ok/masks/1.png"]
    )
    touch(tmp_path, *names, *others)
    samples, problems = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["ok"]
    assert {unicodedata.normalize("NFC", one.id) for one in problems} == {"\u00e9"}
    assert any("Unicode form" in one.reason for one in problems)


def test_names_in_annotations_are_those_of_the_files_in_any_form_of_unicode(tmp_path):
    touch(tmp_path, "images/e\u0301.png")
    coco(tmp_path, ["\u00e9.png"], [0])
    samples, problems = find_samples(tmp_path)
    assert ([sample.id for sample in samples], problems) == (["\u00e9"], [])


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


def test_an_image_that_lacks_the_mask_of_a_class_is_set_aside_with_the_file_that_is_missing(tmp_path):
    touch(tmp_path, "images/a.png", "masks/nucleus/a.png", "masks/membrane/a.png")
    touch(tmp_path, "images/b.png", "masks/nucleus/b.png", "masks/membrane/c.png")
    samples, problems = find_samples(tmp_path, 3, CLASSES)
    assert [sample.id for sample in samples] == ["a"]
    assert [(one.file, one.reason) for one in problems] == [
        ("images/b.png", "no mask masks/membrane/b.png"),
        ("masks/membrane/c.png", "no image images/c.<ext>"),
    ]


AMBIGUOUS = {
    "classes that are not named": (
        None,
        ["images/a.png", "masks/nucleus/a.png", "masks/membrane/a.png"],
        r"folder of masks for each of membrane, nucleus.*prepare\.classes=\[membrane, nucleus\].*num_classes to 3",
    ),
    "a class that is also a folder of images": (
        CLASSES,
        ["images/nucleus/a.png", "masks/nucleus/a.png", "masks/membrane/a.png"],
        r"found images/nucleus/ and masks/nucleus/, while prepare\.classes names 'nucleus'",
    ),
    "a folder that is no class": (
        CLASSES,
        ["images/a.png", "masks/nucleus/a.png", "masks/membrane/a.png", "masks/cell/a.png"],
        r"found masks/cell; expected a folder of masks for each of prepare\.classes and nothing else",
    ),
    "a class without a folder": (
        CLASSES,
        ["images/a.png", "masks/nucleus/a.png"],
        r"found no masks/membrane/; expected a folder of masks for each",
    ),
    "a mask outside the classes": (
        CLASSES,
        ["images/a.png", "masks/nucleus/a.png", "masks/membrane/a.png", "masks/a.png"],
        r"found masks/a\.png; expected a folder of masks for each",
    ),
    "pairs and COCO": (
        None,
        ["images/a.png", "masks/a.png", "annotations.json"],
        r"found masks/ and also annotations\.json, so it may be pairs or COCO",
    ),
}


@pytest.mark.parametrize(("classes", "names", "message"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_may_be_read_in_two_ways_is_refused_with_both(tmp_path, classes, names, message):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        find_samples(tmp_path, 3, classes)


def coco(root, images, annotations, name="annotations.json"):
    content = {
        "images": [{"id": id, "file_name": file} for id, file in enumerate(images)],
        "annotations": [
            {"id": 10 + id, "image_id": image, "category_id": 1, "segmentation": {"size": [1, 1], "counts": [0, 1]}}
            for id, image in enumerate(annotations)
        ],
        "categories": [{"id": 1, "name": "nucleus"}],
    }
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["annotations.json", "annotations/instances.json"])
def test_coco_images_are_found_by_their_names_and_those_without_annotations_have_empty_masks(tmp_path, name):
    touch(tmp_path, "images/a.jpg", "images/day 1/b.png")
    coco(tmp_path, ["images/day 1/b.png", "a.jpg"], [1, 1], name)
    samples, problems = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["a", "day 1/b"]
    assert [len(sample.drawing.shapes) for sample in samples if sample.drawing] == [2, 0]
    assert {sample.masks for sample in samples} == {()}
    assert problems == []


def test_coco_names_every_image_and_annotation_that_has_no_partner(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/extra.png", "images/twice.png", "images/twice.tif")
    coco(tmp_path, ["a.jpg", "gone.png", "../evil.png", "twice.png"], [0, 1, 99])
    samples, problems = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["a"]
    assert sorted((one.file, one.reason.partition(";")[0]) for one in problems) == [
        ("annotations.json", "found ../evil.png among its images"),
        ("annotations.json", "found annotation 12 of the image 99, which is not listed"),
        ("annotations.json", "found gone.png among its images"),
        ("images/extra.png", "no entry among the images of the annotations"),
        (
            "images/twice.png",
            "names differ only by case, suffix or Unicode form: images/twice.png, images/twice.tif",
        ),
        (
            "images/twice.tif",
            "names differ only by case, suffix or Unicode form: images/twice.png, images/twice.tif",
        ),
    ]
    assert all(one.fix for one in problems)


@pytest.mark.parametrize(
    ("train", "val", "folders"),
    [
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", ("train", "valid")),
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", ("train2017", "val2017")),
    ],
    ids=["Roboflow", "COCO 2017"],
)
def test_coco_files_of_splits_mean_the_images_of_their_own_split(tmp_path, train, val, folders):
    touch(tmp_path, *(f"{folder}/{name}.jpg" for folder in folders for name in "ab"))
    for number, name in enumerate((train, val)):  # of the same names, and with one shape in train alone
        coco(tmp_path, ["a.jpg", "b.jpg"], [1] * (1 - number), name)
    samples, problems = find_samples(tmp_path)
    assert problems == []
    other = folders[1].removesuffix("2017")
    assert {one.id: (one.split, len(one.drawing.shapes)) for one in samples if one.drawing} == {
        "train/a": ("train", 0),
        "train/b": ("train", 1),
        f"{other}/a": ("val", 0),
        f"{other}/b": ("val", 0),
    }


def volume(path, num_pages, side=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tiff(path, *np.zeros((num_pages, side, side), np.uint8))


def test_pages_are_samples_of_the_group_that_is_their_volume(tmp_path):
    for folder in ("images", "masks/nucleus", "masks/membrane"):
        volume(tmp_path / folder / "v.tif", 2)
        volume(tmp_path / folder / "flat.tif", 1)
    samples, problems = find_samples(tmp_path, 3, CLASSES, pages="slices")
    assert [(one.id, one.group, one.page) for one in samples] == [
        ("flat", None, None),
        ("v@0001", "v", 1),
        ("v@0002", "v", 2),
    ]
    assert {(len(one.masks), one.classes) for one in samples} == {(2, (1, 2))}
    assert problems == []
    whole, _ = find_samples(tmp_path, 3, CLASSES)
    assert [one.id for one in whole] == ["flat", "v"]  # refused when they are decoded


def test_a_volume_whose_mask_has_other_pages_is_set_aside_with_both_counts(tmp_path):
    for name, pages, mask_pages in (("a", 3, 2), ("b", 3, 1), ("c", 1, 3), ("d", 2, 2)):
        volume(tmp_path / f"images/{name}.tif", pages)
        volume(tmp_path / f"masks/{name}.tif", mask_pages)
    (tmp_path / "masks/d.tif").write_bytes((tmp_path / "masks/d.tif").read_bytes()[:30])
    samples, problems = find_samples(tmp_path, pages="slices")
    assert samples == []
    assert [(one.file, one.reason.partition(";")[0]) for one in problems[:3]] == [
        ("masks/a.tif", "found 2 pages for the 3 pages of a.tif"),
        ("masks/b.tif", "found 1 pages for the 3 pages of b.tif"),
        ("masks/c.tif", "found 3 pages for the 1 pages of c.tif"),
    ]
    assert problems[3].reason.startswith("found a broken file")


def test_a_volume_cannot_have_annotations(tmp_path):
    volume(tmp_path / "images/v.tif", 2)
    coco(tmp_path, ["v.tif"], [0])
    samples, (problem,) = find_samples(tmp_path, pages="slices")
    assert samples == []
    assert problem.reason.startswith("found annotations without pages for the 2 pages of v.tif")
