"""The plan of whole sets: real ones, and stand-ins in the layouts of others; each choice with its value."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipelines.core.params import override
from pipelines.planning.plan import make_plan
from tests.pipelines.planning import stand_ins
from unetpp.errors import UserError

HALF = [16, 32, 64, 128, 256]


def check(plan, expected: dict) -> None:
    assert {key: plan.values.get(key) for key in expected} == expected
    for key, choice in plan.params.items():
        assert choice.reason, key
        assert "\n" not in choice.reason, key


def plan_of(location, params, minutes=30.0, probe=False, keep=None):
    plan = make_plan(str(location), "a-name", minutes, base=params, use_gpu=False, probe=probe, keep=keep)
    override(params, plan.values)  # the values are legal together
    assert plan.values["register.model_name"] == plan.values["register.experiment"] == "a-name"
    return plan


@pytest.mark.shared_data
def test_road_scenes(shared_data, params):
    plan = plan_of(shared_data / "camvid", params)
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    check(
        plan,
        {
            "prepare.num_classes": 11,
            "prepare.classes": names,
            "prepare.background": False,
            "prepare.ignore": 11,
            "prepare.kinds": "looks",
            "prepare.size": [192, 240],
            "prepare.fit": "pad",
            "search.widths": [HALF],
            "train.crop_px": None,
            "augment.flips": "horizontal",
            "augment.quarter_turns": False,
            "evaluate.boundary_tolerance_px": 2,
        },
    )
    assert "the dataset's own split, by folders: 367 train, 101 val, 233 test" in plan.found


@pytest.mark.shared_data
def test_pets(shared_data, params):
    plan = plan_of(shared_data / "pets", params)
    check(
        plan,
        {
            "prepare.num_classes": 1,
            "prepare.values": {0: "object", 1: "background", 2: "ignore"},
            "prepare.kinds": "looks",
            "prepare.size": 128,
            "search.widths": [HALF],
            "augment.flips": "horizontal",
            "augment.quarter_turns": False,
        },
    )


@pytest.mark.shared_data
def test_nuclei(shared_data, params):
    plan = plan_of(shared_data / "dsb2018", params)
    check(
        plan,
        {
            "prepare.num_classes": 1,
            "prepare.kinds": "microscopy",
            "prepare.channels": 3,
            "prepare.size": None,
            "train.crop_px": 128,
            "train.crops_per_image": 5,
            "train.foreground_crops": 0.33,
            "search.widths": [HALF],
            "augment.flips": "all",
            "augment.quarter_turns": True,
        },
    )


def test_photographs_with_jpeg_masks(tmp_path, params):
    check(
        plan_of(stand_ins.kvasir(tmp_path / "set"), params),
        {
            "prepare.num_classes": 1,
            "prepare.mask_threshold": 128,
            "prepare.size": 160,
            "prepare.fit": "pad",
            "prepare.kinds": "none",
            "augment.flips": "horizontal",
        },
    )


def test_palette_masks_with_void_and_lists(tmp_path, params):
    plan = plan_of(stand_ins.voc(tmp_path / "set"), params)
    assert plan.values["prepare.classes"][14] == "person"
    check(
        plan,
        {
            "prepare.num_classes": 21,
            "prepare.background": True,
            "prepare.ignore": 255,
            "prepare.size": [128, 160],
            "prepare.fit": "pad",
            "augment.flips": "horizontal",
        },
    )


def test_grey_membranes_of_which_most_is_foreground(tmp_path, params):
    plan = plan_of(stand_ins.electrons(tmp_path / "set"), params, probe=True, minutes=0.001)
    check(
        plan,
        {
            "prepare.num_classes": 1,
            "prepare.channels": 1,
            "prepare.shares": {"train": 0.6, "val": 0.2, "test": 0.2},
            "prepare.size": None,
            "prepare.kinds": "microscopy",
            "train.crop_px": 128,
            "train.foreground_crops": None,
            "augment.flips": "all",
            "augment.quarter_turns": True,
        },
    )
    assert any("not inverted" in line for line in plan.found)
    # The probe: no time at all leaves narrow widths, a crop of each image, and the fewest epochs.
    assert plan.values["search.widths"] == [[8, 16, 32, 64, 128]]
    assert (plan.values["train.epochs"], plan.values["train.crops_per_image"]) == (10, 1)
    assert "GiB" in plan.cost


def test_what_the_user_keeps_is_what_the_rest_follows(tmp_path, params):
    root = stand_ins.electrons(tmp_path / "set")
    plan = plan_of(root, params, keep={"prepare.size": 64})
    assert "prepare.size" not in plan.values
    check(plan, {"train.crop_px": None, "train.crops_per_image": None})


def test_what_the_user_has_set_is_not_asked_for(tmp_path, params):
    rng = np.random.default_rng(0)
    for index in range(12):
        rows = np.kron(np.arange(1, 10 + index), np.ones(4, np.uint8))  # objects that touch, more in each image
        numbers = np.pad(np.tile(rows[:, None], (1, 20)), 8).astype(np.uint8)
        stand_ins.save(tmp_path / f"set/images/{index}.png", rng.integers(0, 255, numbers.shape).astype(np.uint8))
        stand_ins.save(tmp_path / f"set/masks/{index}.png", numbers)
    assert any("model.targets" in line for line in plan_of(tmp_path / "set", params).asked)
    kept = plan_of(tmp_path / "set", params, keep={"model.targets": ["mask", "boundary", "distance"]})
    assert kept.asked == []


def test_what_the_user_says_of_masks_settles_what_they_mean(tmp_path, params):
    root = stand_ins.voc(tmp_path / "set", 12)
    values = {0: "background", 255: "ignore", **dict.fromkeys(range(1, 21), "it")}
    plan = plan_of(root, params, keep={"prepare.num_classes": 1, "prepare.values": values})
    assert not {"prepare.num_classes", "prepare.classes", "prepare.ignore", "prepare.values"} & plan.params.keys()
    assert any("masks are read as set by" in line for line in plan.found)


def test_folders_and_categories_name_classes(tmp_path, params):
    rng = np.random.default_rng(0)
    categories = [{"id": id, "name": name} for id, name in ((10, "stem"), (2, "leaf"))]
    coco = {"images": [], "annotations": [], "categories": categories}
    for number in range(12):
        image, mask = stand_ins.photograph(rng, 96, 96, 2)
        stand_ins.save(tmp_path / f"coco/images/{number}.png", image)
        stand_ins.save(tmp_path / f"folders/images/{number}.png", image)
        for name, value in (("leaf", 1), ("stem", 2)):
            stand_ins.save(tmp_path / f"folders/masks/{name}/{number}.png", (mask == value) * np.uint8(255))
        coco["images"].append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 96})
        square = {"segmentation": [[10, 10, 40, 10, 40, 40, 10, 40]], "area": 900, "bbox": [10, 10, 30, 30]}
        coco["annotations"].append({"id": number, "image_id": number, "category_id": (2, 10)[number % 2]} | square)
    (tmp_path / "coco/annotations.json").write_text(json.dumps(coco))
    for name in ("coco", "folders"):
        expected = {"prepare.classes": ["leaf", "stem"], "prepare.num_classes": 3, "prepare.size": 96}
        check(plan_of(tmp_path / name, params), expected)


def test_the_same_data_give_the_same_plan(tmp_path, params):
    root = stand_ins.kvasir(tmp_path / "set", 16)
    assert plan_of(root, params) == plan_of(root, params)


def test_class_folders_whose_masks_lie_over_each_other_are_labels(tmp_path, params):
    rng = np.random.default_rng(0)
    for number in range(12):
        image, mask = stand_ins.photograph(rng, 64, 64)
        stand_ins.save(tmp_path / f"set/images/{number}.png", image)
        inner = np.zeros_like(mask)
        inner[16:48, 16:48] = mask[16:48, 16:48]
        for name, one in (("cell", mask), ("nucleus", inner)):
            stand_ins.save(tmp_path / f"set/masks/{name}/{number}.png", one * 255)
    plan = plan_of(tmp_path / "set", params)
    check(
        plan,
        {"prepare.multilabel": True, "prepare.num_classes": 2, "prepare.classes": ["cell", "nucleus"]},
    )


def test_a_single_volume_and_two_images_cannot_be_divided(tmp_path, params):
    root = stand_ins.electrons(tmp_path / "two", num=2)
    with pytest.raises(UserError, match=rf"^{root}: found 2 images in 2 groups that stay together, .*at least 3"):
        plan_of(root, params)
    pages = [np.asarray(Image.open(path)) for path in sorted((root / "image").iterdir())]
    (tmp_path / "one").mkdir()
    for name in ("train-volume", "train-labels"):
        tifffile.imwrite(tmp_path / f"one/{name}.tif", np.stack(pages) & 1 if "labels" in name else np.stack(pages))
    with pytest.raises(
        UserError, match=r"found 2 images in 1 group that stay together, such as volumes; .*slices of a"
    ):
        plan_of(tmp_path / "one", params)


def test_what_cannot_be_used_is_told_before_a_stage_stops(tmp_path, params):
    root = stand_ins.electrons(tmp_path)
    for number in range(15, 20):
        (root / f"label/{number}.png").unlink()
    plan = plan_of(root, params)
    assert "25% of the images cannot be used" in plan.asked[-1]
    assert "prepare.max_quarantined: 0.26" in plan.asked[-1]
    (root / "split.csv").write_text("id,split\n0,fold1\n")
    with pytest.raises(UserError, match=rf"^{root}/split\.csv: line 2: found the split 'fold1'"):
        plan_of(root, params)
    for path in (root / "image").iterdir():
        path.rename(root / f"image/x{100 + int(path.stem)}.png")
    (root / "split.csv").unlink()
    (root / "image").rename(root / "images")
    (root / "label").rename(root / "masks")
    with pytest.raises(
        UserError, match=rf"^{root}: found no image with a mask: .* no image images/0\.<ext>; expected equal"
    ):
        plan_of(root, params)


def test_folders_of_patients_stay_in_one_split(tmp_path, params):
    rng = np.random.default_rng(0)
    for name, patients in {"many": 8, "few": 3}.items():
        for number in range(3 * patients):
            image, mask = stand_ins.photograph(rng, 64, 64)
            folder = tmp_path / f"{name}/patient{number // 3}"
            stand_ins.save(folder / f"images/{number}.png", image)
            stand_ins.save(folder / f"masks/{number}.png", mask * 255)
    check(plan_of(tmp_path / "many", params), {"prepare.groups.pattern": "^(.+)/", "prepare.kinds": "none"})
    few = plan_of(tmp_path / "few", params)
    check(few, {"prepare.groups.pattern": None, "prepare.kinds": "folder"})
    assert any(line.endswith("prepare.groups.pattern: ^(.+)/") for line in few.asked), few.asked


def test_patients_of_a_given_split_are_no_kinds_and_nothing_is_drawn_by_shares(tmp_path, params):
    rng = np.random.default_rng(0)
    for patient, split in enumerate(["train", "train", "val", "test"]):
        for number in range(3):
            image, mask = stand_ins.photograph(rng, 64, 64)
            stand_ins.save(tmp_path / f"{split}/p{patient}/images/{number}.png", image)
            stand_ins.save(tmp_path / f"{split}/p{patient}/masks/{number}.png", mask)
    check(plan_of(tmp_path, params), {"prepare.kinds": "none", "prepare.shares": None, "prepare.groups.pattern": None})
