"""Mask files to class indices and objects, one file or many, and images that lie where their masks should."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from pipelines.core.params import load_params
from pipelines.dataset import mask_files
from pipelines.dataset.coco import Drawing, Shape
from pipelines.dataset.layouts import Sample, find_samples
from pipelines.dataset.mask_files import check_meanings, flatness, read_labels
from tests.conftest import REPOSITORY
from tests.unetpp.images.tiffs import write_tiff
from unetpp.data.resized import resize_mask
from unetpp.errors import FileError, UserError
from unetpp.images.decode import decode_image, decode_mask
from unetpp.network.masks import IGNORE

PARAMS = load_params(REPOSITORY / "params.yaml").prepare
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (20, 30, 3), np.uint8)
LEFT, RIGHT = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
LEFT[5:15, 2:18], RIGHT[8:18, 10:28] = 255, 200


def sample(tmp_path, *masks, image=PICTURE, **more):
    Image.fromarray(image).save(tmp_path / "image.png")
    paths = []
    for number, mask in enumerate(masks):
        paths.append(tmp_path / f"mask{number}.png")
        Image.fromarray(mask).save(paths[-1])
    return Sample("a", tmp_path / "image.png", tuple(paths), **more)


def read(one, num_classes=1, image=PICTURE, **more):
    return read_labels(one, image, PARAMS.model_copy(update={"num_classes": num_classes} | more))


def test_one_file_is_the_mask_and_its_values_are_kept_as_numbers_of_objects(tmp_path):
    stored = ((LEFT > 0) * 7 + (RIGHT > 0) * 300).astype(np.uint16)
    found = read(sample(tmp_path, stored))
    assert np.array_equal(found.mask, stored > 0)
    assert np.array_equal(found.numbers, stored)
    assert found.mask.dtype == np.uint8
    assert not found.one_each


def test_a_file_an_object_is_their_union_and_each_file_is_a_number(tmp_path):
    found = read(sample(tmp_path, LEFT, RIGHT))
    assert np.array_equal(found.mask, (LEFT > 0) | (RIGHT > 0))
    assert np.array_equal(found.numbers, np.where(RIGHT > 0, 2, (LEFT > 0) * 1))
    assert found.one_each


def test_more_than_255_objects_keep_their_numbers(tmp_path):
    masks = []
    for number in range(300):
        mask = np.zeros((20, 30), np.uint8)
        mask[number // 30, number % 30] = 255
        masks.append(mask)
    found = read(sample(tmp_path, *masks))
    assert np.array_equal(found.numbers[:10].ravel(), np.arange(1, 301))


def test_a_file_a_class_is_that_class_whatever_its_values_and_the_later_one_lies_on_top(tmp_path):
    for order, classes in (((LEFT, RIGHT), (1, 2)), ((RIGHT, LEFT), (2, 1))):
        found = read(sample(tmp_path, *order, classes=classes), num_classes=3)
        assert np.array_equal(found.mask, np.where(RIGHT > 0, 2, (LEFT > 0) * 1))
        assert not found.one_each
    union = read(sample(tmp_path, LEFT, RIGHT, classes=(1, 2)), num_classes=1)
    assert np.array_equal(union.mask, (LEFT > 0) | (RIGHT > 0))


def test_class_indices_of_several_files_are_joined_by_the_higher_one(tmp_path):
    found = read(sample(tmp_path, (LEFT > 0) * np.uint8(2), (RIGHT > 0) * np.uint8(1)), num_classes=3)
    assert np.array_equal(found.mask, np.where(LEFT > 0, 2, (RIGHT > 0) * 1))


def test_an_ignore_value_of_shapes_which_have_none_is_refused(tmp_path):
    drawn = sample(tmp_path, drawing=Drawing(tmp_path / "annotations.json", (30, 20), ()))
    check_meanings([sample(tmp_path, LEFT), drawn], PARAMS)
    check_meanings([sample(tmp_path, LEFT)], PARAMS.model_copy(update={"ignore": 255}))
    with pytest.raises(UserError, match=r"annotations\.json: found COCO annotations, and prepare\.ignore is 255"):
        check_meanings([sample(tmp_path, LEFT), drawn], PARAMS.model_copy(update={"ignore": 255}))


def test_shapes_are_numbered_objects(tmp_path):
    lengths = {"size": [20, 30], "counts": [100, 50, 450]}
    shapes = (Shape("1", 2, lengths), Shape("2", 1, {"size": [20, 30], "counts": [120, 50, 430]}))
    drawing = Drawing(tmp_path / "annotations.json", (30, 20), shapes)
    found = read(sample(tmp_path, drawing=drawing), num_classes=3)
    assert found.one_each
    assert [(found.mask == index).sum() for index in (1, 2)] == [20, 50]
    assert [(found.numbers == number).sum() for number in (1, 2)] == [50, 20]  # the higher class is on top of both


def test_a_crowd_is_of_its_class_and_no_object(tmp_path):
    halves = ({"size": [20, 30], "counts": [start, 50, 550 - start]} for start in (100, 120))
    shapes = tuple(Shape(str(crowd), 1, half, iscrowd=crowd) for crowd, half in enumerate(halves))
    one = sample(tmp_path, drawing=Drawing(tmp_path / "annotations.json", (30, 20), shapes))
    for labels in (read(one), read(one, num_classes=2, multilabel=True)):
        assert (labels.mask > 0).sum() == 70
        assert (labels.numbers > 0).sum() == 50


BITS = (LEFT > 0) * np.uint8(1) | (RIGHT > 0) * np.uint8(2)
BOTH = int(((LEFT > 0) & (RIGHT > 0)).sum())


def test_files_and_shapes_of_labels_lie_over_each_other_and_their_objects_are_whole(tmp_path):
    """A folder a label, COCO categories that overlap, and a file an object give the same masks and the same objects."""

    def lengths(mask):
        flat = np.concatenate([[False], mask.T.ravel() > 0, [False]])
        ends = np.flatnonzero(np.diff(flat.astype(np.int8)))
        return {"size": [20, 30], "counts": np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()}

    shapes = (Shape("1", 1, lengths(LEFT)), Shape("2", 2, lengths(RIGHT)))
    samples = {
        "folders": sample(tmp_path, LEFT, RIGHT, classes=(1, 2)),
        "shapes": sample(tmp_path, drawing=Drawing(tmp_path / "annotations.json", (30, 20), shapes)),
    }
    (tmp_path / "objects").mkdir()
    samples["objects"] = sample(tmp_path / "objects", (LEFT > 0) * np.uint8(1), (RIGHT > 0) * np.uint8(2))
    for name, one in samples.items():
        found = read(one, num_classes=2, multilabel=True)
        assert np.array_equal(found.mask, BITS), name
        assert found.overlap_px == BOTH > 0
        assert [np.count_nonzero(plane) for plane in found.numbers] == [(LEFT > 0).sum(), (RIGHT > 0).sum()]
        assert found.one_each == (name != "folders")


def test_of_classes_that_overlap_the_number_of_pixels_is_known(tmp_path):
    one = sample(tmp_path, LEFT, RIGHT, classes=(1, 2))
    assert read(one, num_classes=3).overlap_px == BOTH
    assert read(one, num_classes=1).overlap_px == 0  # all foreground alike
    assert read(sample(tmp_path, LEFT, LEFT), num_classes=1).overlap_px == 0


def smooth(levels=16):
    """A disc at four times the size, made smaller: its mask with grey rims, and what it is of."""
    y, x = np.mgrid[:80, :120]
    fine = np.hypot(y - 39, x - 55) < 36
    shares = np.rint(fine.reshape(20, 4, 30, 4).mean(axis=(1, 3)) * levels) / levels
    return np.rint(shares * 255).astype(np.uint8), shares >= 0.5


@pytest.mark.parametrize("levels", [2, 16])
def test_shades_of_foreground_are_counted_and_decided_by_the_threshold(tmp_path, levels):
    shades, true = smooth(levels)
    rim = int(((shades > 0) & (shades < 255)).sum())
    assert rim > 10
    for masks, classes, num in (((shades,), None, 1), ((shades, LEFT), (1, 2), 3), ((shades, LEFT * 0), None, 1)):
        one = sample(tmp_path, *masks, classes=classes)
        found, decided = read(one, num), read(one, num, mask_threshold=128)
        assert (found.shades_px, decided.shades_px) == (rim, 0)
        assert ((found.mask == 1) | (LEFT > 0)).sum() == ((shades > 0) | (LEFT > 0)).sum()
        assert np.array_equal((decided.mask == 1)[LEFT == 0], true[LEFT == 0])
        assert set(np.unique(decided.numbers)) <= {0, 1, 2}


def test_numbers_of_objects_are_no_shades_and_a_threshold_that_would_lose_some_is_refused(tmp_path):
    numbers = np.kron(np.arange(6).reshape(2, 3), np.ones((10, 10))).astype(np.uint8) * 40
    one = sample(tmp_path, numbers)
    assert read(one).shades_px == 0
    assert read(sample(tmp_path, LEFT), mask_threshold=128).mask.any()
    for mask, lowest in ((numbers, 40), (LEFT // 255, 1)):
        with pytest.raises(
            FileError, match=rf"mask0.png: found the value {lowest} in whole areas, and .*: set prepare"
        ):
            read(sample(tmp_path, mask), mask_threshold=128)


def test_whole_areas_between_0_and_a_full_scale_are_told_too(tmp_path):
    mask = LEFT.copy()
    mask[:4] = 128  # as some mark what nobody looked at
    found = read(sample(tmp_path, mask))
    assert (found.shades_px, found.mask.sum()) == (120, (mask > 0).sum())


INDICES = np.where(RIGHT > 0, 2, (LEFT > 0) * 1).astype(np.uint8)
WRONG_VALUES = {
    "a class": (INDICES * 4, 3, False, "value 8; expected 0 to 2", "set prepare.ignore to this value"),
    "a label": (INDICES * 2, 2, True, "value 4; expected the number of a label", "a folder each, masks/<label>/"),
    "255 of labels": (LEFT, 2, True, "values 0 and 255 only", "masks/<label>/"),
    "255": (LEFT, 200, False, "values 0 and 255 only", "set prepare.num_classes to 1, or write class indices"),
    "255 everywhere": (LEFT * 0 + 255, 200, False, "values 0 and 255 only", "set prepare.num_classes to 1"),
    "255 and others": (np.where(RIGHT > 0, 3, LEFT), 200, False, "value 255; expected 0 to 199", "correct the mask"),
}


@pytest.mark.parametrize("case", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_values_that_are_no_class_are_refused_with_what_they_may_be(tmp_path, case):
    mask, num_classes, multilabel, found, fix = case
    with pytest.raises(FileError, match=rf"mask0\.png: found the mask {found}") as caught:
        read(sample(tmp_path, mask.astype(np.uint8)), num_classes, multilabel=multilabel)
    assert fix in caught.value.fix


def test_a_file_of_class_indices_holds_one_label_a_pixel(tmp_path):
    indices = INDICES.copy()
    indices[0, 0] = 3
    found = read(sample(tmp_path, indices), num_classes=3, multilabel=True).mask
    assert np.array_equal(found, np.where(indices == 3, 4, indices))  # the bits of the first three labels


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("task", ["binary", "classes", "labels", "folders", "folders of labels"])
def test_pixels_of_the_ignore_value_are_ignored_and_all_others_are_as_without_it(tmp_path, task, kind):
    ignore = 200 if kind == np.uint8 else 40_000
    more = {"multilabel": task.endswith("labels")}
    files = [LEFT > 0, RIGHT > 0] if "folders" in task else [np.where(RIGHT > 0, 2, (LEFT > 0) * 1)]
    num_classes = {"binary": 1, "classes": 3, "folders": 3}.get(task, 2)
    if "folders" in task:
        more["classes"] = (1, 2)
    unknown = np.zeros((20, 30), bool)
    unknown[7:12, 5:16] = True
    plain, holed = ([mask.astype(kind) for mask in files] for _ in range(2))
    holed[0][unknown] = ignore
    classes = more.pop("classes", None)
    without = read(sample(tmp_path, *plain, classes=classes), num_classes, **more)
    found = read(sample(tmp_path, *holed, classes=classes), num_classes, ignore=ignore, **more)
    assert (found.mask[unknown] == IGNORE).all()
    assert not found.numbers[..., unknown].any()
    for one, other in ((found.mask, without.mask), (found.numbers, without.numbers)):
        assert np.array_equal(one[..., ~unknown], other[..., ~unknown])
    same = read(sample(tmp_path, *plain, classes=classes), num_classes, ignore=ignore, **more)
    assert np.array_equal(same.mask, without.mask)


TASKS = [("binary", 1, False), ("classes", 4, False), ("labels", 3, True)]


@pytest.mark.parametrize("size", [12, 20, 31, 45, 90])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task[0])
def test_resizing_moves_no_label_into_what_nobody_annotated_nor_out_of_it(task, size):
    _, num_classes, multilabel = task
    rng = np.random.default_rng(size)
    high = 8 if multilabel else max(2, num_classes)
    mask = np.kron(rng.integers(0, high, (6, 6)), np.ones((10, 10))).astype(np.uint8)  # 60 px
    plain = mask.copy()
    mask[:, 30:] = IGNORE
    small = resize_mask(mask, (size, size), num_classes, multilabel)
    assert np.array_equal(small[:, -(size // 2) :], np.full((size, size // 2), IGNORE))  # half of 60 px, half of size
    assert not (small[:, : (size + 1) // 2 - 1] == IGNORE).any()
    # One pixel from the edge a known one is as if all were known.
    inner = size // 2 - max(1, size // 30)
    assert np.array_equal(small[:, :inner], resize_mask(plain, (size, size), num_classes, multilabel)[:, :inner])
    # Whatever the ignored pixels would have been.
    assert set(np.unique(small)) <= {*np.unique(mask[:, :30]), *([] if not multilabel else range(8)), IGNORE}


def test_labels_are_resized_each_as_a_mask_of_its_own():
    rng = np.random.default_rng(1)
    mask = np.kron(rng.integers(0, 128, (7, 7)), np.ones((9, 9))).astype(np.uint8)
    for size in (16, 26, 50, 80):
        small = resize_mask(mask, (size, size), 7, multilabel=True)
        for bit in range(7):
            alone = resize_mask(mask >> bit & 1, (size, size), 1)
            assert np.array_equal(small >> bit & 1, alone)


def test_a_pixel_that_is_partly_known_is_decided_by_its_known_part():
    mask = np.array([[1, IGNORE, 0, 0], [1, 0, 0, 0], [IGNORE, IGNORE, 1, 1], [1, 1, IGNORE, 0]], np.uint8)
    for num_classes in (1, 2):  # of two by two pixels each
        assert resize_mask(mask, (2, 2), num_classes).tolist() == [[1, 0], [IGNORE, 1]]


def test_a_mask_page_is_that_of_its_image(tmp_path):
    write_tiff(tmp_path / "mask.tif", LEFT, RIGHT)
    for page, mask in ((1, LEFT), (2, RIGHT)):
        one = Sample("a", tmp_path / "image.tif", (tmp_path / "mask.tif",), page=page)
        assert np.array_equal(read(one).mask, mask > 0)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_in_place_of_the_mask_is_told_whatever_its_type(tmp_path, mode, suffix):
    (tmp_path / "masks").mkdir()
    one = sample(tmp_path, image=LEFT)
    path = tmp_path / f"masks/a.{suffix}"
    Image.fromarray(PICTURE).convert(mode).save(path)
    one = Sample("a", one.image, (path,))
    with pytest.raises(FileError, match="are the two swapped") as caught:
        read(one, image=decode_image(one.image, 3))
    assert caught.value.path == path
    assert caught.value.fix == "exchange the two"


def test_a_flat_image_with_its_mask_and_a_picture_with_another_are_not_called_swapped(tmp_path):
    flat = np.stack([RIGHT] * 3, axis=2)  # an empty field, or one that is saturated
    assert read(sample(tmp_path, LEFT, image=flat), image=flat).mask.any()
    noisy = RNG.integers(0, 2, (20, 30), np.uint8)  # no mask that one would draw, and yet no reason to refuse it
    assert read(sample(tmp_path, noisy)).mask.any()


def test_flatness_is_the_share_of_equal_neighbours():
    assert flatness(np.zeros((1, 1, 3))) == 1
    assert flatness(np.array([[[0], [1]], [[0], [1]]])) == 0.5
    assert flatness(np.array([[[0, 1], [0, 2]]])) == 0


@pytest.mark.shared_data
def test_real_pairs_are_never_called_swapped_and_nearly_all_are_the_other_way_round(shared_data):
    folder = shared_data / "dsb2018"
    names = sorted(path.name for path in (folder / "images").iterdir())[::9]
    found = []
    for name in names:
        image, mask = (decode_image(folder / kind / name, 3) for kind in ("images", "masks"))
        assert flatness(mask) > mask_files.FLAT_AS_LABELS  # so a pair is not called swapped, whatever its image
        found.append(flatness(image) < mask_files.NOISY_AS_A_PICTURE)
    assert np.mean(found) > 0.95


@pytest.mark.shared_data
def test_the_real_zip_and_the_real_folder_hold_the_same_pictures_and_the_same_foreground(shared_data, tmp_path):
    """RGBA there and L or RGB here; a file a nucleus there and 16-bit labels here."""
    with zipfile.ZipFile(shared_data / "bbbc038_sample.zip") as archive:
        archive.extractall(tmp_path)
    samples, problems = find_samples(tmp_path)
    assert problems == []
    assert len(samples) == 31
    for one in samples:
        image, name = decode_image(one.image, 3), f"{one.id[:16]}.png"
        assert np.array_equal(image, decode_image(shared_data / "dsb2018/images" / name, 3))
        found, stored = read(one, image=image), decode_mask(shared_data / "dsb2018/masks" / name)
        assert np.array_equal(found.mask, stored > 0)
        assert found.one_each
        assert found.numbers.max() == len(one.masks)
