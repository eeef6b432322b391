"""Mask files to class indices and objects, one file or many, and images that lie where their masks should."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from pipelines import labels
from pipelines.coco import Drawing, Shape
from pipelines.labels import flatness, read_labels
from pipelines.layouts import Sample, find_samples
from unetpp.errors import FileError
from unetpp.images import Limits, decode_image, decode_mask

from ..unetpp.tiffs import write_tiff

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


def read(one, num_classes=1, image=PICTURE):
    return read_labels(one, image, num_classes, Limits())


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


def test_shapes_are_numbered_objects(tmp_path):
    lengths = {"size": [20, 30], "counts": [100, 50, 450]}
    shapes = (Shape("1", 2, lengths), Shape("2", 1, {"size": [20, 30], "counts": [120, 50, 430]}))
    drawing = Drawing(tmp_path / "annotations.json", (30, 20), shapes)
    found = read(sample(tmp_path, drawing=drawing), num_classes=3)
    assert found.one_each
    assert [(found.mask == index).sum() for index in (1, 2)] == [20, 50]
    assert [(found.numbers == number).sum() for number in (1, 2)] == [20, 50]


def test_a_mask_page_is_that_of_its_image(tmp_path):
    write_tiff(tmp_path / "mask.tif", LEFT, RIGHT)
    for page, mask in ((1, LEFT), (2, RIGHT)):
        one = Sample("a", tmp_path / "image.tif", (tmp_path / "mask.tif",), page=page)
        assert np.array_equal(read(one).mask, mask > 0)


@pytest.mark.parametrize("values", [(0, 255), (255, 255)])
def test_0_and_255_alone_are_told_from_other_values_that_are_no_class(tmp_path, values):
    mask = np.where(LEFT > 0, values[1], values[0]).astype(np.uint8)
    with pytest.raises(FileError, match=r"mask0\.png: found the mask values 0 and 255 alone") as caught:
        read(sample(tmp_path, mask), num_classes=200)
    assert caught.value.fix == "set prepare.num_classes to 1, or write class indices"
    with pytest.raises(FileError, match=r"found the mask value 255; expected 0 to 199"):
        read(sample(tmp_path, np.where(RIGHT > 0, 3, mask).astype(np.uint8)), num_classes=200)


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
        assert flatness(mask) > labels.FLAT_AS_LABELS  # so a pair is not called swapped, whatever its image
        found.append(flatness(image) < labels.NOISY_AS_A_PICTURE)
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
