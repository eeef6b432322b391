"""What masks hold is read as what it means, or the likelier meaning is taken and the line for the other is told."""

import cv2
import numpy as np
import pytest

from pipelines.planning.choices import Plan
from pipelines.planning.class_tables import find_table, known_table, voc_colour
from pipelines.planning.mask_facts import add_up
from pipelines.planning.meaning import read_meaning
from tests.pipelines.planning.stand_ins import masks_of, membranes, photograph, save
from unetpp.errors import UserError
from unetpp.images.pictures import Limits


def disc(side: int, radius: int, value: int = 1, at: tuple[int, int] | None = None) -> np.ndarray:
    return cv2.circle(np.zeros((side, side), np.uint8), at or (side // 2, side // 2), radius, value, -1)


def trimap(rng: np.random.Generator, inner: int, outer: int, border: int) -> np.ndarray:
    whole = disc(64, int(rng.integers(14, 22)))
    core = cv2.erode(whole, np.ones((5, 5), np.uint8))
    return np.where(core > 0, inner, np.where(whole > 0, border, outer)).astype(np.uint8)


def numbered(rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((64, 64), np.uint16)
    for number in range(int(rng.integers(4, 9))):
        mask[8 * number : 8 * number + 5, 10:20] = number + 1
    return mask


def cells(rng: np.random.Generator) -> np.ndarray:
    """1 inside of many cells, 2 on their border: classes, and no trimap."""
    mask = np.zeros((96, 96), np.uint8)
    for y in range(12, 96, 24):
        for x in range(12, 96, 24):
            mask |= disc(96, int(rng.integers(7, 10)), 2, (x, y))
            mask[disc(96, 5, 1, (x, y)) > 0] = 1
    return mask


def scene(rng: np.random.Generator, unlabelled: int | None = None) -> np.ndarray:
    """Three bands of classes 0, 1, 2, none of them a background, and a third one in the middle."""
    mask = np.repeat(np.array([0, 1, 2], np.uint8), 24)[:, None].repeat(72, axis=1)
    mask[20:50, 20:40] = 3
    if unlabelled is not None:
        ys, xs = rng.integers(0, 72, (2, 90))
        mask[ys, xs] = unlabelled
    return mask


def soft(rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(disc(64, int(rng.integers(10, 20)), 255), (5, 5), 0)


def stripes(rng: np.random.Generator) -> np.ndarray:
    """Eleven classes, and 255 here and there."""
    mask = np.repeat(np.arange(11, dtype=np.uint8), 8)[4:, None].repeat(64, axis=1)
    mask[int(rng.integers(0, 80)) :, 30:34] = 255
    return mask


DRAWN = {
    "many classes and 255": (
        stripes,
        {
            "prepare.num_classes": 11,
            "prepare.classes": [f"class {number}" for number in range(11)],
            "prepare.background": False,
            "prepare.ignore": 255,
        },
    ),
    "0 and 255": (lambda _: disc(64, 20, 255), {"prepare.num_classes": 1}),
    "0 and 1": (lambda _: disc(64, 20), {"prepare.num_classes": 1}),
    "1 and 2": (
        lambda _: disc(64, 16) + np.uint8(1),
        {"prepare.num_classes": 1, "prepare.values": {1: "background", 2: "object"}},
    ),
    "grey rims": (soft, {"prepare.num_classes": 1, "prepare.mask_threshold": 128}),
    "1 in some, 255 in others": (lambda rng: disc(64, 20, int(rng.choice((1, 255)))), {"prepare.num_classes": 1}),
    "a disc and its cup on white": (  # 255 is no unlabelled pixel where values are levels, and not indices
        lambda _: np.minimum(255 - disc(64, 24, 127), 255 - disc(64, 12, 255)),
        {
            "prepare.num_classes": 3,
            "prepare.classes": ["class 0", "class 128"],
            "prepare.background": True,
            "prepare.values": {0: "class 0", 128: "class 128", 255: "background"},
        },
    ),
    "levels up to white": (
        lambda rng: photograph(rng, 64, 64, 3)[1] * np.uint8(85),
        {
            "prepare.num_classes": 4,
            "prepare.classes": ["class 85", "class 170", "class 255"],
            "prepare.background": True,
            "prepare.values": {0: "background", 85: "class 85", 170: "class 170", 255: "class 255"},
        },
    ),
    "0 and 65535": (lambda _: disc(64, 20).astype(np.uint16) * 65535, {"prepare.num_classes": 1}),
    "a majority of foreground": (lambda rng: membranes(rng, 64)[1], {"prepare.num_classes": 1}),
    "a trimap of 0 1 2": (
        lambda rng: trimap(rng, 0, 1, 2),
        {"prepare.num_classes": 1, "prepare.values": {0: "object", 1: "background", 2: "ignore"}},
    ),
    "a trimap of 1 2 3": (
        lambda rng: trimap(rng, 1, 2, 3),
        {"prepare.num_classes": 1, "prepare.values": {1: "object", 2: "background", 3: "ignore"}},
    ),
    "a trimap of 0 128 255": (
        lambda rng: trimap(rng, 255, 0, 128),
        {"prepare.num_classes": 1, "prepare.values": {0: "background", 128: "ignore", 255: "object"}},
    ),
    "numbers of objects": (numbered, {"prepare.num_classes": 1}),
    "borders of cells": (
        cells,
        {"prepare.num_classes": 3, "prepare.classes": ["class 1", "class 2"], "prepare.background": True},
    ),
    "classes without a background": (
        scene,
        {
            "prepare.num_classes": 4,
            "prepare.classes": ["class 0", "class 1", "class 2", "class 3"],
            "prepare.background": False,
        },
    ),
    "255 beside classes": (
        lambda rng: scene(rng, 255),
        {
            "prepare.num_classes": 4,
            "prepare.classes": ["class 0", "class 1", "class 2", "class 3"],
            "prepare.background": False,
            "prepare.ignore": 255,
        },
    ),
    "a scattered highest value": (
        lambda rng: scene(rng, 4),
        {
            "prepare.num_classes": 4,
            "prepare.classes": ["class 0", "class 1", "class 2", "class 3"],
            "prepare.background": False,
            "prepare.ignore": 4,
        },
    ),
    "classes far apart": (
        lambda rng: photograph(rng, 64, 64, 2)[1] * np.uint8(70),
        {
            "prepare.num_classes": 3,
            "prepare.classes": ["class 70", "class 140"],
            "prepare.background": True,
            "prepare.values": {0: "background", 70: "class 70", 140: "class 140"},
        },
    ),
}


def meaning_of(files, table=None, names=()) -> Plan:
    plan = Plan()
    read_meaning(add_up(files, Limits()), table, list(names), plan)
    return plan


@pytest.mark.parametrize("name", DRAWN)
def test_values_are_read_as_what_they_mean(name, tmp_path):
    draw, expected = DRAWN[name]
    plan = meaning_of(masks_of(tmp_path, draw))
    assert plan.values == expected
    for choice in plan.params.values():
        assert choice.reason
        assert "\n" not in choice.reason


def test_what_values_cannot_tell_is_told_with_the_line_to_write(tmp_path):
    plan = meaning_of(masks_of(tmp_path, DRAWN["a trimap of 0 1 2"][0]))
    assert "prepare.values: {0: background, 1: object, 2: ignore}" in plan.asked[0]
    plan = meaning_of(masks_of(tmp_path / "em", DRAWN["a majority of foreground"][0]))
    assert any("not inverted" in line for line in plan.found)
    assert "prepare.values: {0: object, 255: background}" in plan.asked[0]


def test_targets_that_part_objects_are_suggested_where_numbered_ones_touch(tmp_path):
    def touching(rng):
        return cv2.dilate(numbered(rng), np.ones((5, 1), np.uint8))

    plan = meaning_of(masks_of(tmp_path / "touch", touching))
    assert plan.values == {"prepare.num_classes": 1}  # and not chosen
    assert "model.targets: [mask, boundary, distance]" in plan.asked[0]
    assert meaning_of(masks_of(tmp_path / "apart", numbered)).asked == []
    few = meaning_of(masks_of(tmp_path / "few", lambda rng: numbered(rng)[:32]))  # of up to 3 objects
    assert any("if values number objects, repeat with  -S prepare.num_classes=1" in line for line in few.asked)


TABLES = {
    "_classes.csv": "Pixel Value, Class\n0, background\n1, leaf\n2, stem\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\nleaf,255,0,0\nstem,0,255,0\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\nleaf:255,0,0::\nstem:0,255,0::\n",
    "label_colors.txt": "0 0 0 background\n255 0 0 leaf\n0 255 0 stem\n",
    "dataset.json": '{"labels": {"background": 0, "leaf": 1, "stem": 2}}',
    "id2label.json": '{"0": "background", "1": "leaf", "2": "stem"}',
    "class_names.txt": "__ignore__\n_background_\nleaf\nstem\n",
}
COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_beside_the_set_names_its_classes(name, tmp_path):
    (tmp_path / name).write_text(TABLES[name])
    table = find_table(tmp_path, ["images/a.png", name])
    assert table is not None
    coloured = any(isinstance(key, str) for key in table.names)

    def draw(rng):
        mask = photograph(rng, 64, 64, 2)[1]
        return COLOURS[mask] if coloured else mask

    plan = meaning_of(masks_of(tmp_path / "masks", draw), table)
    assert plan.values["prepare.classes"] == ["leaf", "stem"]
    assert plan.values["prepare.num_classes"] == 3
    assert plan.values["prepare.background"] is True
    assert plan.values.get("prepare.values") == (table.names if coloured else None)


def test_tables_that_begin_with_1_say_what_0_is(tmp_path):
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.16\twall\n2\t0.11\tbuilding, edifice\n")
    (tmp_path / "id2label.json").write_text('{"1": "wall", "2": "building"}')
    for name, zero in (("objectInfo150.txt", "ignore"), ("id2label.json", "background")):
        table = find_table(tmp_path, [name])
        assert table is not None
        assert table.names == {0: zero, 1: "wall", 2: "building"}


def test_colours_of_jpeg_are_those_of_wide_areas_and_numbers_in_colours_are_refused(tmp_path):
    for number in range(6):
        rng = np.random.default_rng(number)
        save(tmp_path / f"{number}.jpg", COLOURS[photograph(rng, 64, 64, 2)[1]], quality=80)
    plan = meaning_of([(path, None) for path in sorted(tmp_path.glob("*.jpg"))])
    assert plan.values["prepare.values"] == {
        "#000000": "background",
        "#00ff00": "colour 00ff00",
        "#ff0000": "colour ff0000",
    }
    for number in range(6):  # a middle level is a class, and no shade
        level = photograph(np.random.default_rng(number), 64, 64, 2)[1].astype(np.uint16) * 255 // 2
        save(tmp_path / f"grey/{number}.jpg", level.astype(np.uint8), quality=80)
    plan = meaning_of([(path, None) for path in sorted(tmp_path.glob("grey/*.jpg"))])
    assert plan.values["prepare.values"] == {0: "background", 127: "class 127", 255: "class 255"}
    files = masks_of(tmp_path / "objects", lambda rng: rng.integers(0, 255, (90, 3)).astype(np.uint8)[numbered(rng)])
    with pytest.raises(UserError, match=r"a\.png: found masks of \d+ or more colours, .*16-bit grey PNG"):
        meaning_of(files, names=["a.png"])


def test_colours_without_a_table_are_named_by_themselves(tmp_path):
    plan = meaning_of(masks_of(tmp_path, lambda rng: COLOURS[photograph(rng, 64, 64, 2)[1]]))
    assert plan.values["prepare.classes"] == ["colour 00ff00", "colour ff0000"]
    assert plan.asked


def test_well_known_sets_are_known_by_their_values_and_names():
    voc = known_table([0, 5, 15, 255], ["VOC2012/SegmentationClass/a.png"])
    assert voc is not None
    assert (voc.names[15], voc.names[255]) == ("person", "ignore")
    assert voc_colour(15) == "#c08080"
    city = known_table([0, 7, 26], ["gtFine/train/a/a_gtFine_labelIds.png"])
    assert city is not None
    assert (city.names[7], city.names[0]) == ("road", "ignore")
    city = known_table([0, 18, 255], ["gtFine/train/a/a_gtFine_labelTrainIds.png"])
    assert city is not None
    assert (city.names[0], city.names[18], city.names[255]) == ("road", "bicycle", "ignore")
    road = known_table(range(12), ["trainannot/a.png"])
    assert road is not None
    assert (road.names[0], road.names[11]) == ("sky", "ignore")
    assert known_table([0, 1, 2], ["masks/a.png"]) is None
