"""What mask values mean by `prepare.values`: numbers, palette indices and colours, of files as people have them."""

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.core.sections.prepare import Prepare
from pipelines.dataset.coco import Drawing
from pipelines.dataset.layouts import Sample
from pipelines.dataset.mask_files import check_meanings, read_labels
from tests.conftest import REPOSITORY
from tests.unetpp.images.pngs import deep_png
from unetpp.errors import FileError, UserError
from unetpp.images.decode import decode_mask
from unetpp.network.masks import IGNORE

BASE = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["prepare"]
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
TRUTH = np.zeros((24, 32), np.uint8)  # class indices, and IGNORE
TRUTH[4:16, 4:20], TRUTH[10:22, 12:30], TRUTH[0:3] = 1, 2, IGNORE
TWO = {"classes": ["road", "car"], "num_classes": 3}
SKY = {"classes": ["sky", "a"], "num_classes": 2}
CAR, ROAD, VOID = (64, 0, 128), (128, 64, 128), (0, 0, 0)


def section(**more):
    return Prepare(**(BASE | more))


def stored(*of):
    """TRUTH as a file has it: what stands for background, road, car and unlabelled pixels."""
    table = np.zeros((256, *np.shape(of[0])), np.uint16 if np.max(of) > 255 else np.uint8)
    table[[0, 1, 2, IGNORE]] = of
    return table[TRUTH]


def read(path, image=IMAGE, **more):
    return read_labels(Sample("a", path.with_name("image.png"), (path,)), image, section(**more)).mask


def palette(indices, *colours):
    picture = Image.fromarray(indices, "L")
    picture.putpalette([channel for colour in colours for channel in colour])
    return picture


def test_values_stand_for_classes_background_and_ignored_pixels(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(stored(3, 7, 200, 11)).save(path)
    values = {3: "background", 7: "road", 200: "car", 11: "ignore"}
    assert np.array_equal(read(path, values=values, **TWO), TRUTH)
    # As dvc.lock and MLflow have it: JSON has no keys but text. And the value of unlabelled pixels may stand apart.
    texts = {str(key): name for key, name in values.items()}
    assert np.array_equal(read(path, values=texts, **TWO), TRUTH)
    del texts["11"]
    assert np.array_equal(read(path, values=texts, ignore=11, **TWO), TRUTH)
    assert np.array_equal(read(path, values=values), np.where(TRUTH == IGNORE, IGNORE, TRUTH > 0))  # one class


def test_class_0_can_be_a_class(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(stored(0, 1, 2, 11)).save(path)
    classes = {"classes": ["sky", "road", "car"], "num_classes": 3, "background": False}
    names = {0: "car", 1: "sky", 2: "road", 11: "ignore"}
    assert np.array_equal(read(path, values=names, **classes), np.array([2, 0, 1] + 253 * [IGNORE])[TRUTH])
    one = Sample("a", tmp_path / "image.png", (path, path, path), classes=(1, 2, 3))
    with pytest.raises(UserError, match=r"a mask for each class, and prepare\.background is false"):
        check_meanings([one], section(**classes))


BY_INDEX = {0: "background", 1: "a", 2: "b"}
BY_COLOUR = {"#000000": "background", "#804080": "a", "#400080": "b"}
VOC = palette(stored(0, 1, 2, 255), *[VOID, ROAD, CAR] * 85, (224, 224, 192))  # index 255 is void
WHITE = palette(stored(0, 1, 2, 3), (255, 255, 255), VOID, CAR, ROAD)
OPAQUE = stored((*VOID, 0), (*ROAD, 255), (*CAR, 255), (1, 1, 1, 0))
FORMS = {
    "inverted": (stored(255, 0, 0, 128), {0: "membrane", 255: "background", 128: "ignore"}),
    "16 bits": (stored(0, 1000, 40000, 65535), {0: "background", 1000: "a", 40000: "b", 65535: "ignore"}),
    "three channels": (np.repeat(stored(0, 9, 9, 7)[..., None], 3, 2), {0: "background", 9: "a", 7: "ignore"}),
    "RGB by colour": (stored(VOID, ROAD, CAR, (9, 9, 9)), BY_COLOUR | {"#090909": "ignore"}),
    "RGBA by colour": (OPAQUE, BY_COLOUR | {"#010101": "ignore"}),
    "palette by index": (VOC, BY_INDEX | {255: "ignore"}),
    "palette by colour": (VOC, BY_COLOUR | {"#E0E0C0": "ignore"}),
    "palette of which 0 is white": (WHITE, BY_INDEX | {3: "ignore"}),
    "grey by colour": (stored(0, 9, 9, 7), {"#000000": "background", "#090909": "a", "#070707": "ignore"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_mask_is_read(tmp_path, form):
    picture, values = FORMS[form]
    path = tmp_path / "mask.png"
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if picture.mode == "P":
        picture.info["transparency"] = 0  # which Pillow writes as alpha of the palette
    picture.save(path)
    expected = np.where(TRUTH == IGNORE, IGNORE, TRUTH > 0)
    assert np.array_equal(read(path, values=values), expected)


def test_one_bit_and_bool_masks_are_read_by_value_or_colour(tmp_path):
    path, expected = tmp_path / "mask.png", (TRUTH == 1).astype(np.uint8)
    Image.fromarray(TRUTH == 1).save(path)
    assert np.array_equal(read(path, values={0: "background", 1: "a"}), expected)
    assert np.array_equal(read(path, values={"#000000": "a", "#ffffff": "background"}), 1 - expected)


def test_a_value_that_stands_for_nothing_is_named_with_its_pixels(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(stored(0, 1, 7, 99)).save(path)
    what = (
        r"mask\.png: found the mask value 7 in 216 pixels, 99 in 96 pixels; expected .* 0, 1: add 7 to prepare\.values"
    )
    with pytest.raises(FileError, match=what):
        read(path, values={0: "background", 1: "a"})
    Image.fromarray(stored(VOID, ROAD, CAR, VOID)).save(path)
    with pytest.raises(FileError, match="found the mask colour '#400080' in 216 pixels"):
        read(path, values={"#000000": "background", "#804080": "a"})
    with pytest.raises(FileError, match=r"in colours.*name the colours in prepare\.values"):
        read(path, values={0: "background", 1: "a"})
    Image.fromarray(stored((0, 0, 0, 0), (0, 0, 0, 255), (*CAR, 9), (1, 1, 1, 0))).save(path)
    with pytest.raises(FileError, match="transparent in one place and not in another"):
        read(path, values={"#000000": "background", "#400080": "a", "#010101": "b"})
    path.write_bytes(deep_png(stored((0, 0, 0), (1000, 0, 0), (1, 1, 1), (2, 2, 2))))
    with pytest.raises(FileError, match="16-bit values; expected 8-bit colours"):
        read(path, values={"#000000": "background"} | {"#ffffff": "a"})


def test_jpeg_masks_are_read_by_a_threshold_or_by_near_values(tmp_path):
    path, truth = tmp_path / "mask.jpg", TRUTH == 1
    Image.fromarray(truth * np.uint8(255)).convert("RGB").save(path, quality=75)
    assert len(np.unique(decode_mask(path, lossy=True))) > 10
    with pytest.raises(FileError, match=r"JPEG mask.* set prepare\.mask_threshold to 128"):
        read(path)
    with pytest.raises(FileError, match="JPEG mask"):  # of class indices
        read(path, mask_threshold=128, **TWO)
    assert np.array_equal(read(path, mask_threshold=128), truth)
    inverted = {0: "membrane", 255: "background"}
    assert np.array_equal(read(path, mask_threshold=128, values=inverted), ~truth)
    assert np.array_equal(read(path, values=inverted), ~truth)
    named = {"#ffffff": "background", "#804080": "road", "#400080": "car", "#000000": "ignore"}
    picture = Image.fromarray(stored((255, 255, 255), ROAD, CAR, VOID))
    picture.save(path, quality=95, subsampling=0)
    assert np.array_equal(read(path, values=named, **TWO), TRUTH)
    picture.save(path, quality=75)  # what is blurred on edges is ignored, and nothing is taken for another class
    blurred = read(path, values=named, **TWO)
    assert (blurred != TRUTH).any()
    assert set(blurred[blurred != TRUTH]) == {IGNORE}
    with pytest.raises(FileError, match=r"found a JPEG mask with \d+ stray pixels, more than 48 .* in whole areas"):
        read(path, values={"#ffffff": "background", "#804080": "road"})


def test_shapes_have_no_values(tmp_path):
    drawn = Sample("a", tmp_path / "i.png", (), drawing=Drawing(tmp_path / "annotations.json", (30, 20), ()))
    check_meanings([drawn], section())
    with pytest.raises(UserError, match=r"COCO annotations, and prepare\.values is \{0: 'a'\}, for mask files"):
        check_meanings([drawn], section(values={0: "a"}))
    with pytest.raises(UserError, match=r"COCO annotations, and prepare\.background is false"):
        check_meanings([drawn], section(num_classes=2, background=False))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"values": {0: "a", "#000000": "b"}}, "name all by value, or all by colour"),
        ({"values": {0: "a", "0": "b"}}, "found '0' twice"),
        ({"values": {0: "background", 255: "ignore"}}, "names no class"),
        ({"values": {0: "car"}, "num_classes": 3}, r"set prepare.classes=\[car\]"),
        ({"values": {0: "van"}} | TWO, "names 'van', and prepare.classes has road, car"),
        ({"values": {0: "background", 1: "a"}, "background": False} | SKY, "calls a value background"),
        ({"values": {0: "a", 1: "b"}, "mask_threshold": 128}, "name 0 and 255 alone"),
        ({"values": {0: "a", 7: "b"}, "ignore": 7}, "which prepare.values calls 'b'"),
        ({"values": {"#000000": "a"}, "ignore": 7}, "add the colour"),
        ({"background": False}, "prepare.num_classes is 1"),
        ({"background": False, "multilabel": True, "num_classes": 2}, "labels have no class 0"),
        ({"background": False} | TWO, "set it to 2, as the first of them is class 0"),
    ],
)
def test_params_that_contradict_each_other_are_refused(more, said):
    with pytest.raises(ValueError, match=said):
        section(**more)
