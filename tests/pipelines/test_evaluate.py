"""Laws of the evaluate stage: the scores, the rule of the recommendation, the files."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from pipelines import evaluate as stage
from pipelines.sections import Evaluate
from unetpp import metrics
from unetpp.data import Split, SplitWriter
from unetpp.errors import UserError
from unetpp.inference import Segmenter, Trained, load_model, pad_to_multiple, scale, standardise
from unetpp.masks import to_mask
from unetpp.model import NestedUNet

ROOT = Path(__file__).parents[2]
FILES = {"metrics.json", "report.json", "depths.csv", "images.csv", "reliability.csv", "report.html"}
HOSTILE = "<script>alert(1)</script>"
SETTINGS = Evaluate(tolerance_iou=0.01, max_latency_ms=None, latency_rounds=3, latency_size_px=None, throughput_batch=4)


@pytest.fixture(autouse=True)
def _one_thread():
    """The networks here are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_data(folder, sizes=((16, 16),) * 6, num_classes=1, size=16, change=lambda image: image):
    """A prepared folder whose test split holds bright squares on dark ground; the value gives the class."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with SplitWriter(folder / "test.arrow") as writer:
        for index, (height, width) in enumerate(sizes):
            mask = np.zeros((height, width), np.uint8)
            mask[2:9, 3:10] = 1 + index % max(1, num_classes - 1)
            image = (mask[..., None] * 100 + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)
            writer.add(HOSTILE if index == 0 else f"image_{index}", "ab"[index % 2], change(image), mask)
    test = {
        "num_images": len(sizes),
        "sha256": hashlib.sha256((folder / "test.arrow").read_bytes()).hexdigest(),
        "kinds": {"a": 3, "b": 3},
    }
    manifest = {
        "size": size,
        "channels": 3,
        "num_classes": num_classes,
        "multilabel": False,
        "splits": {"test": test},
        "quarantined": 0,
        "raw_sha256": "00" * 32,
        "foreground_share": 0.2,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_model(folder, **keywords):
    folder.mkdir()
    torch.manual_seed(0)
    network = NestedUNet(**({"widths": [2, 4, 8]} | keywords)).eval()
    Trained(network, 16, {"fingerprint": "f" * 64, "epoch": 3}).save(folder / "model.pt")
    return folder


def run(tmp_path, settings=SETTINGS):
    return stage.evaluate(tmp_path / "prepared", tmp_path / "model", tmp_path / "out", settings, torch.device("cpu"))


class Perfect(nn.Module):
    """Knows that whatever is above the middle of its image's range is foreground; as a network, at every head."""

    depth, depths, num_classes, multilabel = 2, (1, 2), 1, False

    def forward(self, image):
        middle = (image.amin(dim=(1, 2, 3), keepdim=True) + image.amax(dim=(1, 2, 3), keepdim=True)) / 2
        return (100 * (image[:, :1] - middle),) * 2


def test_a_perfect_network_scores_one(tmp_path):
    write_data(tmp_path / "prepared")
    predict = stage.Predictor(Trained(Perfect(), 16), torch.device("cpu"))  # type: ignore[arg-type]
    counts = stage.count_pixels(predict, Split(tmp_path / "prepared/test.arrow"), 4)
    assert set(counts) == {"L1", "L2", "mean"}
    for each in counts.values():
        assert set(metrics.scores(each).values()) == {1.0}


def test_images_of_floats_are_measured_and_shown_as_others_are(tmp_path):
    write_model(tmp_path / "model")
    results = []
    # By its own range: exactly what these images have where they hold 0 and 255.
    for name, change in (("bytes", full_range), ("floats", lambda image: full_range(image) / np.float32(64) - 1)):
        write_data(tmp_path / name, change=change)
        shutil.copytree(tmp_path / name, tmp_path / "prepared", dirs_exist_ok=True)
        found = run(tmp_path)
        results.append({depth: row["iou_image"] for depth, row in found["depths"].items()})
    assert results[0] == pytest.approx(results[1], abs=1e-4)


def full_range(image):
    image = image.copy()
    image[0, 0], image[0, 1] = 0, 255
    return image


@pytest.mark.parametrize("num_classes", [1, 3])
def test_one_pass_of_the_whole_equals_each_pruned_network(tmp_path, num_classes):
    sizes = [(16, 16), (19, 22), (16, 16), (31, 16), (19, 22), (16, 16)]
    write_data(tmp_path / "prepared", sizes, num_classes)
    trained = load_model(write_model(tmp_path / "model", num_classes=num_classes))
    split = Split(tmp_path / "prepared/test.arrow")
    counts = stage.count_pixels(stage.Predictor(trained, torch.device("cpu")), split, 2)
    for depth in trained.depths:
        network = trained.segmenter(depth).network
        for index in range(len(split)):
            image, mask = split[index]
            # Padded to the sides of the whole network, or depths would see other pixels past the edge.
            step = 2**trained.network.depth
            with torch.inference_mode():
                logits = network(pad_to_multiple(standardise(scale(image)[None]), step))[0]
            probs = logits.sigmoid() if num_classes == 1 else logits.softmax(dim=1)
            mask_hat = to_mask(probs)[:, : image.shape[0], : image.shape[1]]
            expected = metrics.confusion(mask_hat, torch.tensor(mask)[None], num_classes)[0]
            assert torch.equal(counts[f"L{depth}"][index], expected)


def test_the_mean_is_of_the_probabilities():
    network = NestedUNet([2, 4, 8]).eval()
    segmenter = Segmenter(network)
    image = torch.rand(2, 3, 13, 10)
    with torch.no_grad():
        probs = stage.head_probs(segmenter, image)
        mean = Segmenter(segmenter.network, dict.fromkeys(segmenter.network.depths, 1.0)).eval()(image)
        assert torch.equal(probs[-1], segmenter(image))
    assert mean.shape == (2, 1, 13, 10)
    torch.testing.assert_close(mean, (probs[0] + probs[1]) / 2)


def test_resamples_are_paired():
    iou = np.random.default_rng(1).random(30)
    means = stage.bootstrap({"L1": iou - 0.25, "L2": iou})
    np.testing.assert_allclose(means["L2"] - means["L1"], 0.25)
    low, high = stage.interval(means["L2"])
    assert low < iou.mean() < high
    # The normal approximation of the same interval.
    half = 1.96 * iou.std() / np.sqrt(30)
    assert high - low == pytest.approx(2 * half, rel=0.1)


def depths_of(iou, latency):
    names = [f"L{depth}" for depth in range(1, len(iou) + 1)]
    depths = {name: {"iou_image": i, "latency_ms": l} for name, i, l in zip(names, iou, latency, strict=True)}
    means = {name: np.full(10, i) + np.linspace(-0.001, 0.001, 10) for name, i in zip(names, iou, strict=True)}
    return depths | {"mean": {"iou_image": 0.999, "latency_ms": 99.0}}, means


@pytest.mark.parametrize(
    ("iou", "tolerance", "budget", "expected"),
    [
        ([0.850, 0.871, 0.874, 0.875], 0.01, None, 2),  # the smallest within the tolerance
        ([0.870, 0.871, 0.874, 0.875], 0.01, None, 1),
        ([0.850, 0.871, 0.874, 0.875], 0.0, None, 4),  # no tolerance: the best
        ([0.865, 0.871, 0.874, 0.875], 0.01, None, 1),  # exactly the tolerance is within it
        ([0.850, 0.875, 0.874, 0.871], 0.0, None, 2),  # the best need not be the deepest
        ([0.850, 0.871, 0.874, 0.875], 0.01, 2.5, 2),  # within the budget too
        ([0.850, 0.871, 0.874, 0.875], 0.01, 0.5, None),  # no depth meets the budget
        ([0.850, 0.871, 0.874, 0.875], 0.01, 1.5, None),  # the one that does is outside the tolerance
    ],
)
def test_the_smallest_depth_within_tolerance_and_budget_is_recommended(iou, tolerance, budget, expected):
    depth, sentence = stage.recommend(*depths_of(iou, [1.0, 2.0, 3.0, 4.0]), tolerance, budget)
    assert depth == expected
    assert sentence.startswith("No depth is recommended" if expected is None else f"L{expected} is recommended")
    assert sentence.endswith(".")
    assert "mean of" not in sentence


def test_the_sentence_explains_a_shallower_depth():
    _, sentence = stage.recommend(*depths_of([0.85, 0.871, 0.874, 0.875], [1.0, 2.0, 3.0, 7.8]), 0.01, None)
    assert sentence == (
        "L2 is recommended: iou_image 0.871, 0.4 points below L4 (95 % interval of the paired difference "
        "0.4 to 0.4 points), within the tolerance of 1.0 point, and 3.9 times as fast."
    )


def test_the_sentence_names_the_nearest_when_none_is_fast_enough():
    _, sentence = stage.recommend(*depths_of([0.85, 0.871], [6.0, 9.0]), 0.01, 5)
    assert sentence == (
        "No depth is recommended: none is within the limit of 5 ms; the nearest is L1 with 6.0 ms and iou_image 0.850."
    )


def test_a_slow_shallow_depth_is_passed_over():
    depth, sentence = stage.recommend(*depths_of([0.874, 0.875], [9.0, 4.0]), 0.01, 5)
    assert depth == 2
    assert "too slow" in sentence


def test_the_only_depth_is_recommended():
    depths = {"L4": {"iou_image": 0.8, "latency_ms": 3.0}}
    depth, sentence = stage.recommend(depths, {"L4": np.full(10, 0.8)}, 0.01, None)
    assert depth == 4
    assert "the only depth" in sentence


@pytest.mark.parametrize(
    ("keywords", "num_classes", "names"),
    [
        ({}, 1, ["L1", "L2", "mean"]),
        ({"num_classes": 3}, 3, ["L1", "L2", "mean"]),
        ({"deep_supervision": False}, 1, ["L2"]),
        ({"skips": "plain", "deep_supervision": False}, 1, ["L2"]),
        ({"skips": "encoder"}, 1, ["L1", "L2", "mean"]),
    ],
)
def test_every_kind_of_network_gets_its_four_files(tmp_path, keywords, num_classes, names):
    write_data(tmp_path / "prepared", [(16, 16), (19, 22), (16, 16), (12, 40), (19, 22), (16, 16)], num_classes)
    write_model(tmp_path / "model", **keywords)
    result = run(tmp_path)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / "report.json").read_text()) == result
    assert list(result["depths"]) == names
    assert result["num_images"] == 6
    assert result["recommended_depth"] in load_model(tmp_path / "model").depths

    with open(out / "depths.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["depth"] for row in rows] == names
    assert list(rows[0])[1:] == list(result["depths"][names[0]])
    with open(out / "images.csv", newline="") as file:
        images = list(csv.DictReader(file))
    assert list(images[0]) == ["id", "kind"] + [f"iou_{name}" for name in names]
    for name in names:
        row = result["depths"][name]
        mean = np.mean([float(image[f"iou_{name}"]) for image in images])
        assert mean == pytest.approx(row["iou_image"], abs=1e-5)
        assert row["iou_image_low"] <= row["iou_image"] <= row["iou_image_high"]
        assert row["parameters"] > 0
        assert row["macs"] > 0
        assert row["peak_memory_mib"] > 0
    page = (out / "report.html").read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_quality_is_the_same_in_every_run(tmp_path):
    write_data(tmp_path / "prepared")
    write_model(tmp_path / "model")
    keys = (
        "iou_image",
        "iou_image_low",
        "iou_image_high",
        "iou_pixels",
        "iou_paper",
        "dice_image",
        "dice_pixels",
    )
    keys += ("dice_paper", "parameters", "macs", "size_mib")
    first, second = run(tmp_path), run(tmp_path)
    for name, row in first["depths"].items():
        assert {key: row[key] for key in keys} == {key: second["depths"][name][key] for key in keys}


def test_a_shallower_depth_costs_less(tmp_path):
    write_data(tmp_path / "prepared")
    write_model(tmp_path / "model")
    depths = run(tmp_path)["depths"]
    for key in ("parameters", "macs", "size_mib"):
        assert depths["L1"][key] < depths["L2"][key] <= depths["mean"][key]


def test_latency_is_read_at_the_size_asked_for(tmp_path):
    write_data(tmp_path / "prepared", size=None)
    write_model(tmp_path / "model")
    assert run(tmp_path)["machine"]["size_px"] == 256
    assert run(tmp_path, SETTINGS.model_copy(update={"latency_size_px": 40}))["machine"]["size_px"] == 40


def test_a_model_of_other_data_is_refused(tmp_path):
    write_data(tmp_path / "prepared", num_classes=3)
    write_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"num_classes 1; expected 3.*train again"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_changed_test_split_is_refused(tmp_path):
    prepared = write_data(tmp_path / "prepared")
    write_model(tmp_path / "model")
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["splits"]["test"]["sha256"] = "1" * 64
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"test.arrow: found sha256 .* expected 1111"):
        run(tmp_path)


def test_the_command_without_a_model_exits_with_2_and_a_message(tmp_path):
    write_data(tmp_path / "prepared")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    command = [
        "-m",
        "pipelines.evaluate",
        "--prepared",
        "prepared",
        "--model",
        "models/train",
        "--out",
        "out",
    ]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: models/train: no such model; expected what the train stage writes")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
