"""COCO: masks pixel for pixel those of its own tools, and every way in which a file can be wrong has a name."""

import json
import sys

import numpy as np
import pytest
from pycocotools import mask as reference

from pipelines.dataset.coco import Drawing, Shape, draw, read_annotations
from unetpp.errors import FileError, UserError

HEIGHT, WIDTH = 40, 50
RNG = np.random.default_rng(0)


CROWD = {"size": [HEIGHT, WIDTH], "counts": [100, 300, HEIGHT * WIDTH - 400]}  # of its class as any other


def coco(**changes):
    """Two images, one of them empty, and two categories whose ids do not begin at 1."""
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 8, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "segmentation": [[5, 5, 20, 5, 20, 20, 5, 20]]},
            {"id": 2, "image_id": 7, "category_id": 3, "iscrowd": 1, "segmentation": CROWD},
        ],
        "categories": [{"id": 90, "name": "nucleus"}, {"id": 3, "name": "membrane"}],
    }
    return content | changes


def written(tmp_path, content, name="annotations.json"):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path / name


def drawn(segmentation, tmp_path, size=(WIDTH, HEIGHT), **said):
    drawing = Drawing(tmp_path / "annotations.json", size, (Shape("1", 1, segmentation, **said),))
    [(_, inside)] = draw(drawing, tmp_path / "a.png", HEIGHT, WIDTH)
    return inside


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decode
def test_polygons_are_drawn_as_cocos_own_tools_draw_them(tmp_path):
    for _ in range(50):
        polygons = [(RNG.random((RNG.integers(3, 9), 2)) * [WIDTH, HEIGHT]).ravel().tolist() for _ in range(2)]
        # pycocotools takes floats too, and its stub knows whole numbers alone.
        runs = reference.frPyObjects(polygons, HEIGHT, WIDTH)  # pyright: ignore[reportCallIssue, reportArgumentType]
        expected = reference.decode(reference.merge(runs))
        assert np.array_equal(drawn(polygons, tmp_path), expected)


def test_run_lengths_are_read_as_cocos_own_tools_read_them_packed_or_not(tmp_path):
    for share in (0, 0.02, 0.5, 1):
        for smooth in (1, 10):
            mask = np.kron(RNG.random((HEIGHT // smooth, WIDTH // smooth)) < share, np.ones((smooth, smooth), bool))
            packed = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
            counts = packed["counts"].decode()  # pyright: ignore[reportAttributeAccessIssue] - it is bytes
            packed = {"size": list(packed["size"]), "counts": counts}
            assert np.array_equal(drawn(packed, tmp_path), mask)
            column = np.concatenate([[False], mask.T.ravel()])  # lengths begin with background
            starts = np.flatnonzero(np.diff(column, prepend=False)) - 1
            lengths = np.diff(np.concatenate([[0], starts, [mask.size]]))
            assert np.array_equal(drawn({"size": [HEIGHT, WIDTH], "counts": lengths.tolist()}, tmp_path), mask)


@pytest.mark.parametrize(
    ("num_classes", "classes", "multilabel", "indices"),
    [
        (1, None, False, [1, 1]),
        (1, ("nucleus", "membrane"), False, [1, 1]),
        (3, None, False, [2, 1]),  # by the order of the categories' ids
        (3, ("nucleus", "membrane"), False, [1, 2]),
        (3, ("membrane", "nucleus"), False, [2, 1]),
        (2, ("nucleus", "membrane"), True, [1, 2]),  # the background is no label
    ],
)
def test_categories_are_foreground_or_indices_by_name_or_by_id(tmp_path, num_classes, classes, multilabel, indices):
    drawings = read_annotations([written(tmp_path, coco())], num_classes, classes, multilabel)[0]
    assert [shape.class_index for shape in drawings["a.png"].shapes] == indices
    assert list(draw(drawings["b.png"], tmp_path / "b.png", HEIGHT, WIDTH)) == []  # nothing is drawn on it


def test_a_category_that_only_heads_others_is_none(tmp_path):
    content = coco()
    for row in content["categories"]:
        row["supercategory"] = "cells"
    content["categories"].insert(0, {"id": 0, "name": "cells", "supercategory": "none"})
    drawings = read_annotations([written(tmp_path, content)], 3, None)[0]
    assert [shape.class_index for shape in drawings["a.png"].shapes] == [2, 1]


def test_several_files_are_one_set(tmp_path):
    first, second = coco(), coco()
    first["images"], second["images"] = first["images"][:1], second["images"][1:]
    second["annotations"] = []
    paths = [written(tmp_path, first, "1.json"), written(tmp_path, second, "2.json")]
    assert set(read_annotations(paths, 1, None)[0]) == {"a.png", "b.png"}
    with pytest.raises(FileError, match=r"2\.json: found a\.png twice among the images \(also in 1\.json\)"):
        read_annotations([paths[0], written(tmp_path, first, "2.json")], 1, None)


SEGMENTATIONS = {
    "none": None,
    "empty": [],
    "two points": [[1, 1, 5, 5]],
    "odd": [[1, 1, 5, 5, 9, 1, 4]],
    "text": [[1, 1, 5, 5, "9", 1]],
    "not a number": [[1, 1, 5, 5, float("nan"), 1]],
    "far outside": [[1, 1, 5, 5, 1e9, 1]],
    "flat": [1, 1, 5, 5, 9, 1],
    "other size": {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]},
    "too short": {"size": [HEIGHT, WIDTH], "counts": [10, 20]},
    "too long": {"size": [HEIGHT, WIDTH], "counts": [10, HEIGHT * WIDTH]},
    "negative": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH + 5, -5]},
    "huge": {"size": [HEIGHT, WIDTH], "counts": "o" * 99},
    "letters": {"size": [HEIGHT, WIDTH], "counts": "\x01"},
    "no counts": {"size": [HEIGHT, WIDTH]},
}


@pytest.mark.parametrize("segmentation", SEGMENTATIONS.values(), ids=SEGMENTATIONS)
def test_a_segmentation_that_is_none_is_refused_with_its_annotation_and_image(tmp_path, segmentation):
    with pytest.raises(FileError, match=r"annotations\.json: found annotation 1 of a\.png with .*; expected polygons"):
        drawn(segmentation, tmp_path)


@pytest.mark.parametrize("size", [(9, 9), (96.0, 40), (50, 40.5), ("50", 40), (None, 40), (float("nan"), 40), (40, 50)])
def test_annotations_for_another_size_are_refused(tmp_path, size):
    found = f"{size[0]!r}x{size[1]!r}"
    content = coco(images=[{"id": 7, "file_name": "a.png", "width": size[0], "height": size[1]}], annotations=[])
    drawing = read_annotations([written(tmp_path, content)], 1, None)[0]["a.png"]
    with pytest.raises(FileError) as caught:
        list(draw(drawing, tmp_path / "a.png", HEIGHT, WIDTH))
    assert f"found annotations for {found} px of a.png of 50x40 px; expected the same size" in str(caught.value)


@pytest.mark.parametrize("size", [{}, {"width": None, "height": None}, {"width": 50.0, "height": 40}])
def test_a_size_of_any_type_of_number_is_taken_and_none_is_too(tmp_path, size):
    content = coco(images=[{"id": 7, "file_name": "a.png"} | size], annotations=[])
    drawing = read_annotations([written(tmp_path, content)], 1, None)[0]["a.png"]
    assert list(draw(drawing, tmp_path / "a.png", HEIGHT, WIDTH)) == []


SQUARE = [[10, 10, 30, 10, 30, 25, 10, 25]]  # 20 x 15 px
ALL_ROWS = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 10, HEIGHT * 20, HEIGHT * 20]}
HONEST = {
    "its own": (SQUARE, {"area": 300, "bbox": [10, 10, 20, 15]}),
    "nothing said": (SQUARE, {"area": 0, "bbox": []}),
    "rounded, and to the last pixel": (SQUARE, {"area": 266.0, "bbox": [10, 10, 19, 14]}),
    "the area of the bbox": ([[0, 0, 40, 38, 40, 40]], {"area": 1600, "bbox": [0, 0, 40, 40]}),
    "a bbox beyond the image": ([[-10, 10, 20, 10, 20, 30, -10, 30]], {"bbox": [-10, 10, 30, 20]}),
    "one pixel": ([[5, 5, 6, 5, 6, 6, 5, 6]], {"area": 1, "bbox": [5, 5, 1, 1]}),
    "one pixel in the corner": ([[0, 0, 1, 0, 1, 1, 0, 1]], {"area": 1, "bbox": [0, 0, 1, 1]}),
    "run lengths": (ALL_ROWS, {"area": HEIGHT * 20, "bbox": [10, 0, 20, HEIGHT]}),
}
OF_ANOTHER_SCALE = {
    "shares of the image": ([[0.2, 0.25, 0.6, 0.25, 0.6, 0.6]], {"area": 300}, "coordinates from 0 to 1"),
    "shares, also of the box": (
        [[0.2, 0.25, 0.6, 0.25, 0.6, 0.6]],
        {"bbox": [0.2, 0.25, 0.4, 0.35]},
        "coordinates from",
    ),
    "half the size": ([[5, 5, 15, 5, 15, 12, 5, 12]], {"area": 300}, "the area 300 for a shape of "),
    "twice the size": ([[10, 5, 50, 5, 50, 35, 10, 35]], {"area": 300.0}, "the area 300 for a shape of "),
    "elsewhere": (SQUARE, {"bbox": [16, 10, 20, 15]}, "the bbox [16, 10, 20, 15] for a shape in [10.0, 10.0, "),
    "x and y exchanged": (SQUARE, {"bbox": [10, 10, 15, 20]}, "the bbox [10, 10, 15, 20] for a shape in"),
    "outside the image": ([[-30, 5, -20, 5, -20, 25]], {"area": 100}, "the area 100 for a shape of 0 px"),
    "run lengths": (ALL_ROWS, {"area": 30}, "the area 30 for a shape of 800 px"),
}


@pytest.mark.parametrize(("segmentation", "said"), HONEST.values(), ids=HONEST)
def test_a_shape_that_is_about_what_its_area_and_bbox_say_is_drawn(tmp_path, segmentation, said):
    assert drawn(segmentation, tmp_path, **said).any()


@pytest.mark.parametrize(("segmentation", "said", "message"), OF_ANOTHER_SCALE.values(), ids=OF_ANOTHER_SCALE)
def test_a_shape_of_another_scale_or_place_than_its_area_and_bbox_is_refused(tmp_path, segmentation, said, message):
    with pytest.raises(FileError) as caught:
        drawn(segmentation, tmp_path, **said)
    assert f"found annotation 1 of a.png with {message}" in str(caught.value)


WRONG = {
    "text": ("hello", "found no JSON"),
    "nested": ("[" * 100_000, "found no JSON"),
    "list": ([1], "found list; expected a COCO file"),
    "captions": ({"images": [], "annotations": []}, "found no list of categories"),
    "name": (coco(images=[{"id": 7}]), "found an image with file_name None"),
    "id": (coco(images=[{"file_name": "a.png"}]), "found a.png with id None"),
    "category": (
        coco(annotations=[{"id": 5, "image_id": 7, "category_id": 4, "segmentation": []}]),
        "found annotation 5 of the category 4, which is not listed",
    ),
    "category of no type": (
        coco(annotations=[{"id": 5, "image_id": 7, "category_id": [3], "segmentation": []}]),
        "found annotation 5 of the category [3], which is not listed",
    ),
    "two names": (coco(categories=[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]), "found the category 3 as 'a' and"),
    "two ids": (coco(categories=[{"id": 3, "name": "a"}, {"id": 90, "name": "a"}]), "two categories named 'a'"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_no_coco_file_is_refused_by_what_it_lacks(tmp_path, content, message):
    with pytest.raises(FileError, match=r"annotations\.json: ") as caught:
        read_annotations([written(tmp_path, content)], 1, None)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("num_classes", "classes", "multilabel", "message"),
    [
        (4, None, False, r"found 2 categories; expected 3.*set prepare\.num_classes to 3, or to 1"),
        (3, None, True, r"found 2 categories; expected 3, as prepare\.num_classes = 3 counts only labels"),
        (3, ("nucleus", "membranes"), False, "found the categories nucleus, membrane; expected those of"),
    ],
)
def test_categories_that_do_not_fit_to_the_params_are_refused(tmp_path, num_classes, classes, multilabel, message):
    with pytest.raises(FileError, match=message):
        read_annotations([written(tmp_path, coco())], num_classes, classes, multilabel)


def test_polygons_without_pycocotools_are_refused_with_what_to_install_and_run_lengths_are_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pip install 'PATH\[coco\]'"):
        read_annotations([written(tmp_path, coco())], 1, None)
    assert drawn({"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}, tmp_path).all()
