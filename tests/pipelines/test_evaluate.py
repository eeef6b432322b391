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

from pipelines import evaluate as stage
from pipelines.core.git import git_commit
from pipelines.core.params import load_params
from pipelines.evaluation.examples import pick
from pipelines.evaluation.predictor import Predictor
from pipelines.evaluation.quality import measure_quality
from pipelines.evaluation.report_schema import Depth, Report
from pipelines.pages.depth_page import build_page
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.manifest import Manifest, SplitFacts
from unetpp.data.scaling import scale, standardise
from unetpp.errors import UserError
from unetpp.inference.model_file import Trained, load_model
from unetpp.inference.segmenter import pad_to_multiple
from unetpp.network.masks import to_mask
from unetpp.network.model import NestedUNet
from unetpp.scores import metrics

ROOT = Path(__file__).parents[2]
FILES = {"metrics.json", "report.json", "depths.csv", "images.csv", "reliability.csv", "page"}
HOSTILE = "<script>alert(1)</script>"
SETTINGS = load_params(ROOT / "params.yaml").evaluate.model_copy(update={"latency_rounds": 3, "throughput_batch": 4})


@pytest.fixture(autouse=True)
def _no_process(request, monkeypatch):
    """A fresh process imports torch, which takes seconds; the test of the command has a real one."""
    if "real_cold_start" not in request.fixturenames:
        monkeypatch.setattr(
            "pipelines.evaluation.depth_costs.measure_cold_start", lambda files, *_: dict.fromkeys(files, 1.0)
        )


@pytest.fixture
def real_cold_start():
    """Asked for by a test that starts the process."""


@pytest.fixture(autouse=True)
def _one_thread():
    """The networks here are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_data(
    folder, sizes=((16, 16),) * 6, num_classes=1, size: int | None = 16, change=lambda image: image, multilabel=False
):
    """A prepared folder whose test and val splits hold bright squares on dark ground; the value gives the class."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    splits, rows = {}, ["id,group,kind,split,fold"]
    for split in ("val", "test"):
        with SplitWriter(folder / f"{split}.arrow") as writer:
            for index, (height, width) in enumerate(sizes):
                mask = np.zeros((height, width), np.uint8)
                mask[2:9, 3:10] = 1 + index % max(1, num_classes - 1)
                image = (mask[..., None] * 100 + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)
                id = f"{split}_{index}" if index or split == "val" else HOSTILE
                writer.add(id, "ab"[index % 2], change(image), mask)
                rows.append(f"{id},group {index // 2},{'ab'[index % 2]},{split},")
        digest = hashlib.sha256((folder / f"{split}.arrow").read_bytes()).hexdigest()
        splits[split] = SplitFacts(len(sizes), digest, {"a": 3, "b": 3})
    (folder / "split.csv").write_text("\n".join(rows) + "\n")
    facts = {"size": size, "num_classes": num_classes, "multilabel": multilabel}
    Manifest(channels=3, splits=splits, raw_sha256="00" * 32, **facts).write(folder)
    return folder


def write_model(folder, widths: tuple[int, ...] = (2, 4, 8), **keywords):
    folder.mkdir()
    torch.manual_seed(0)
    network = NestedUNet(widths, **keywords).eval()
    Trained(network, 16, {"fingerprint": "f" * 64, "epoch": 3}).save(folder / "model.safetensors")
    return folder


def run(tmp_path, settings=SETTINGS):
    return stage.evaluate(tmp_path / "prepared", tmp_path / "model", tmp_path / "out", settings, torch.device("cpu"))


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
    quality, _ = measure_quality(Predictor(trained, torch.device("cpu")), split, 2, 1.0)
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
            assert torch.equal(quality[f"L{depth}"].counts[index], expected)


@pytest.mark.parametrize(
    ("keywords", "num_classes", "names"),
    [
        ({}, 1, ["L1", "L2", "mean"]),
        ({"num_classes": 3}, 3, ["L1", "L2", "mean"]),
        ({"num_classes": 3, "multilabel": True}, 3, ["L1", "L2", "mean"]),
        ({"deep_supervision": False}, 1, ["L2"]),
        ({"skips": "plain", "deep_supervision": False}, 1, ["L2"]),
        ({"skips": "encoder"}, 1, ["L1", "L2", "mean"]),
    ],
)
def test_every_kind_of_network_gets_its_files(tmp_path, keywords, num_classes, names):
    write_data(
        tmp_path / "prepared",
        [(16, 16), (19, 22), (16, 16), (12, 40), (19, 22), (16, 16)],
        num_classes,
        multilabel=keywords.get("multilabel", False),
    )
    write_model(tmp_path / "model", **keywords)
    result = run(tmp_path)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / "report.json").read_text()) == result
    assert list(result["depths"]) == names
    assert (result["num_images"], result["num_groups"]) == (6, 3)
    assert result["recommended_depth"] in load_model(tmp_path / "model").depths

    with open(out / "depths.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["depth"] for row in rows] == names
    assert list(rows[0])[1:] == list(result["depths"][names[0]])
    with open(out / "images.csv", newline="") as file:
        images = list(csv.DictReader(file))
    scores = ("iou", "boundary_f1", "object_f1")
    assert list(images[0]) == ["id", "kind", "group"] + [f"{score}_{name}" for score in scores for name in names]
    assert {image["group"] for image in images} == {"group 0", "group 1", "group 2"}
    for name in names:
        row = result["depths"][name]
        mean = np.mean([float(image[f"iou_{name}"]) for image in images])
        assert mean == pytest.approx(row["iou_image"], abs=1e-5)
        assert row["iou_image_low"] <= row["iou_image"] <= row["iou_image_high"]
        assert row["parameters"] > 0
        assert row["macs"] > 0
        assert row["peak_memory_mib"] > 0
    assert set(result["devices"][0]["depths"]) == set(names)
    assert [device["main"] for device in result["devices"]].count(True) == 1
    assert all(len(rows) == 10 for rows in result["reliability"].values())
    assert [row["name"] for row in result["gates"][names[0]]] == ["flips", "shift", "brightness", "empty"]
    assert list(result["groups"]["class"]) == load_model(tmp_path / "model").classes
    assert {sample["rank"] for sample in result["samples"]} == {"best", "median", "worst", None}
    assert len(result["samples"]) == 6
    page = build_page(out / "page")
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert git_commit(Path.cwd())[0] in page


def test_quality_is_the_same_in_every_run(tmp_path):
    write_data(tmp_path / "prepared")
    write_model(tmp_path / "model")
    timed = {"latency_ms", "latency_p95_ms", "latency_p99_ms", "latency_spread", "images_per_s", "best_batch"}
    first, second = run(tmp_path), run(tmp_path)
    for name, row in first["depths"].items():
        assert {key: row[key] for key in set(row) - timed} == {
            key: second["depths"][name][key] for key in set(row) - timed
        }
    for key in ("groups", "reliability", "gates", "samples", "classes"):
        assert first[key] == second[key]
    for key in ("parameters", "macs", "size_mib"):  # and a shallower depth costs less
        L1, L2, mean = (row[key] for row in first["depths"].values())
        assert L1 < L2 <= mean


@pytest.mark.parametrize("keywords", [{}, {"skips": "plain", "deep_supervision": False}])
def test_a_single_image_makes_a_report_whose_intervals_have_no_width(tmp_path, keywords):
    write_data(tmp_path / "prepared", sizes=((16, 16),))
    write_model(tmp_path / "model", **keywords)
    result = run(tmp_path)
    assert (result["num_images"], result["num_groups"]) == (1, 1)
    for row in result["depths"].values():
        assert row["iou_image_low"] == row["iou_image"] == row["iou_image_high"]
        assert row["difference_iou_low"] == row["difference_iou_high"]
    assert [sample["rank"] for sample in result["samples"]] == ["best"]


def test_images_without_any_object_make_a_report(tmp_path):
    def erase(folder):
        for split in ("val", "test"):
            with SplitWriter(folder / f"{split}.arrow") as writer:
                for number in range(3):
                    id = f"{split}_{number}" if number or split == "val" else HOSTILE
                    writer.add(id, "a", np.full((16, 16, 3), 7, np.uint8), np.zeros((16, 16), np.uint8))
        manifest = json.loads((folder / "manifest.json").read_text())
        for split in ("val", "test"):
            manifest["splits"][split]["sha256"] = hashlib.sha256((folder / f"{split}.arrow").read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))

    erase(write_data(tmp_path / "prepared", sizes=((16, 16),) * 3))
    write_model(tmp_path / "model")
    result = run(tmp_path)
    assert result["groups"]["size"]["small"]["num_objects"] == 0
    assert json.loads((tmp_path / "out/report.json").read_text(), parse_constant=pytest.fail) == result


def test_the_report_is_what_the_schema_says_and_the_page_of_the_method_names_every_key(tmp_path):
    write_data(tmp_path / "prepared")
    write_model(tmp_path / "model")
    run(tmp_path)
    found = json.loads((tmp_path / "out/report.json").read_text())
    Report.model_validate(found)
    with pytest.raises(ValueError, match="finite"):
        Report.model_validate(found | {"classes": {"L1": {"1": float("nan")}}})
    with pytest.raises(ValueError, match="surprise"):
        Report.model_validate(found | {"surprise": 1})
    method = (ROOT / "docs/measurements.md").read_text()
    keys = {field.alias or name for model in (Report, Depth) for name, field in model.model_fields.items()}
    assert [key for key in sorted(keys) if f"`{key}`" not in method] == []


def test_no_depth_within_the_budget_is_null_and_names_the_nearest(tmp_path):
    write_data(tmp_path / "prepared")
    write_model(tmp_path / "model")
    result = run(tmp_path, SETTINGS.model_copy(update={"max_parameters": 10}))
    assert (result["recommended_depth"], result["nearest_depth"]) == (None, 1)
    assert result["decision"]["max_parameters"] == 10
    assert json.loads((tmp_path / "out/metrics.json").read_text())["recommended_depth"] is None


def test_images_to_show_are_the_extremes_and_each_once():
    rows = [{"id": f"{number:02}", "iou_L1": number / 50} for number in range(50)]
    found = pick(rows, "L1", 12)
    assert len({index for _, index in found}) == len(found) == 12
    ranks = {rank: index for rank, index in found if rank}
    assert ranks == {"best": 49, "median": 24, "worst": 0}
    assert [index for _, index in found] == sorted((index for _, index in found), reverse=True)
    assert {0, 1, 2, 3, 4} <= {index for _, index in found}  # the worst ones
    assert [rank for rank, _ in pick(rows[:2], "L1", 12)] == ["best", "worst"]
    assert len(pick(rows[:5], "L1", 12)) == 5


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no such file.*prepare"), ("id,group\nx,y\n", "found no column or image")]
)
def test_groups_that_are_missing_are_refused(tmp_path, text, message):
    prepared = write_data(tmp_path / "prepared")
    write_model(tmp_path / "model")
    (prepared / "split.csv").unlink()
    if text:
        (prepared / "split.csv").write_text(text)
    with pytest.raises(UserError, match=f"split.csv: {message}"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_latency_is_read_at_the_size_asked_for(tmp_path, monkeypatch):
    write_data(tmp_path / "prepared", size=None)
    write_model(tmp_path / "model")
    sizes = []

    def measure(_trained, size_px, *_):
        sizes.append(size_px)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.evaluation.depth_costs.measure_cost", measure)
    for size in (None, 40):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, SETTINGS.model_copy(update={"latency_size_px": size}))
    assert sizes == [256, 40]


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
    with pytest.raises(UserError, match=r"test.arrow: found the sha256 .* expected 1111"):
        run(tmp_path)


@pytest.mark.usefixtures("real_cold_start")
def test_the_command_measures_a_cold_start_too_and_prints_the_decision(tmp_path, monkeypatch, capsys):
    write_data(tmp_path / "prepared")
    write_model(tmp_path / "model")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["evaluate"] |= {"latency_rounds": 3, "throughput_batch": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--prepared", "prepared", "--model", "model", "--out", "out"])
    stage.main()
    depths = json.loads((tmp_path / "out/report.json").read_text())["depths"]
    assert all(depths[name]["cold_start_ms"] > 100 for name in ("L1", "L2", "mean"))  # torch alone takes longer
    printed = capsys.readouterr().out
    assert "is recommended: " in printed
    assert "gate" in printed


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
