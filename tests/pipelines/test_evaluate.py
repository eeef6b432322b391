"""Laws of the evaluate stage: the scores, the rule of the recommendation, the files."""

import csv
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import unetpp
from pipelines import evaluate as stage
from pipelines.core.command import run_command
from pipelines.core.git import git_commit
from pipelines.core.params import load_params
from pipelines.evaluation.depth_table import describe
from pipelines.evaluation.examples import pick
from pipelines.evaluation.predictor import Predictor
from pipelines.evaluation.quality import measure_quality
from pipelines.evaluation.report_schema import Depth, Report
from pipelines.evaluation.scored import read_depth
from pipelines.pages.depth_page import build_page
from pipelines.registry.promotion_rules import judge
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.instances import pack
from unetpp.data.manifest import Manifest, SplitFacts
from unetpp.errors import UserError
from unetpp.models.model_file import Trained, load_model
from unetpp.network.masks import FOR_INSTANCES
from unetpp.network.model import NestedUNet
from unetpp.scores import metrics

ROOT = Path(__file__).parents[2]
FILES = {"metrics.json", "report.json", "engines.json", "depths.csv", "images.csv", "reliability.csv", "page"}
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


def write_data(folder, sizes=((16, 16),) * 6, num_classes=1, size: int | None = 16, change=lambda image: image, **more):
    """A prepared folder whose test and val splits hold bright squares on dark ground; the value gives the class."""
    empty, multilabel, kinds = more.get("empty", False), more.get("multilabel", False), more.get("kinds", "ab")
    numbered = more.get("numbered", False)
    folder.mkdir()
    rng = np.random.default_rng(0)
    splits, rows = {}, ["id,group,kind,split,fold"]
    for split in ("val", "test"):
        with SplitWriter(folder / f"{split}.arrow", instances=numbered) as writer:
            for index, (height, width) in enumerate(sizes):
                mask = np.zeros((height, width), np.uint8)
                mask[2:9, 3:10] = 0 if empty else 1 + index % max(1, num_classes - 1)
                image = (mask[..., None] * 100 + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)
                id = f"{split}_{index}" if index or split == "val" else HOSTILE
                # Two objects that touch: one alone is found, if connected pixels are what is found.
                numbers = pack((mask > 0) * (1 + (np.arange(width) > 5))) if numbered else b""
                writer.add(id, kinds and kinds[index % 2], change(image), mask, numbers)
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


def test_a_test_set_with_nothing_to_find_recommends_and_promotes_nothing(tmp_path):
    write_data(tmp_path / "prepared", empty=True)
    trained = load_model(write_model(tmp_path / "model"))
    for depth in trained.depths:
        trained.network.get_parameter(f"heads.{depth}.bias").data.fill_(-99)
    trained.save(tmp_path / "model/model.safetensors")
    report = run(tmp_path)
    assert report["depths"]["L2"]["iou_image"] == 1
    assert report["recommended_depth"] is None
    assert report["recommendation"].startswith("No depth is recommended: the test images have no foreground")
    assert [gate["passed"] for gate in report["gates"]["L1"]] == [False, False, False, True]
    assert "not measured" in describe(report)
    assert "–" in build_page(tmp_path / "out/page")  # noqa: RUF001
    for recommended in (None, 1):  # and where an evaluation of before recommends one
        candidate = read_depth(tmp_path / "out/images.csv", 1)
        verdict = judge(report | {"recommended_depth": recommended}, candidate, None, 0.01, 1)
        assert not verdict.promote
        assert "the test images have no foreground" in verdict.reason


def full_range(image):
    image = image.copy()
    image[0, 0], image[0, 1] = 0, 255
    return image


@pytest.mark.parametrize("num_classes", [1, 3])
def test_what_is_scored_is_what_prediction_delivers(tmp_path, num_classes):
    sizes = [(16, 16), (19, 22), (16, 16), (31, 16), (19, 22), (16, 16)]
    write_data(tmp_path / "prepared", sizes, num_classes)
    trained = load_model(write_model(tmp_path / "model", num_classes=num_classes))
    split = Split(tmp_path / "prepared/test.arrow")
    quality, _ = measure_quality(Predictor(trained, torch.device("cpu")), split, 2, 1.0)
    for depth in trained.depths:
        predictor = unetpp.Predictor(trained, depth)
        for index in range(len(split)):
            image, mask = split[index]
            mask_hat = torch.from_numpy(predictor.mask(image))
            expected = metrics.confusion(mask_hat[None], torch.tensor(mask)[None], num_classes)[0]
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
        ({"targets": FOR_INSTANCES}, 1, ["L1", "L2", "mean"]),
    ],
)
def test_every_kind_of_network_gets_its_files(tmp_path, keywords, num_classes, names):
    write_data(
        tmp_path / "prepared",
        [(16, 16), (19, 22), (16, 16), (12, 40), (19, 22), (16, 16)],
        num_classes,
        multilabel=keywords.get("multilabel", False),
        numbered=(is_parted := "targets" in keywords),
    )
    write_model(tmp_path / "model", **keywords)
    result = run(tmp_path)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / "report.json").read_text()) == result
    assert list(result["depths"]) == names
    assert (result["num_images"], result["num_groups"]) == (6, 3)
    # One that finds nothing is not recommended.
    assert (result["recommended_depth"] or result["nearest_depth"]) in load_model(tmp_path / "model").depths

    with open(out / "depths.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["depth"] for row in rows] == names
    assert list(rows[0])[1:] == list(result["depths"][names[0]])
    with open(out / "images.csv", newline="") as file:
        images = list(csv.DictReader(file))
    scores = ("iou", "boundary_f1", "object_f1", "ap")
    assert list(images[0]) == ["id", "kind", "group", "height", "width"] + [
        f"{score}_{name}" for score in scores for name in names
    ]
    assert [(image["height"], image["width"]) for image in images][:2] == [("16", "16"), ("19", "22")]
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
    kinds = ("numbers", "watershed") if is_parted else ("components", "components")
    assert (result["objects"]["true"], result["objects"]["predicted"]) == kinds
    assert sum(size["num_objects"] for size in result["groups"]["size"].values()) == 6 * (1 + is_parted)
    assert all(("below_best_ap_high" in one) == is_parted for one in result["decision"]["candidates"])
    assert ("dsb_ap" in json.loads((out / "metrics.json").read_text())) == is_parted
    assert ("predicted objects" in page, "AP of objects" in page) == (is_parted, is_parted)
    assert ("objects  " in describe(result)) == is_parted


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


def test_images_without_any_object_or_kind_make_a_report(tmp_path):
    write_data(tmp_path / "prepared", sizes=((16, 16),) * 3, empty=True, kinds="")
    write_model(tmp_path / "model")
    result = run(tmp_path)
    assert result["groups"]["size"]["small"]["num_objects"] == 0
    assert json.loads((tmp_path / "out/report.json").read_text(), parse_constant=pytest.fail) == result
    assert result["groups"]["kind"] == {}
    assert "kind" not in (tmp_path / "out/images.csv").read_text().split("\n")[0].split(",")
    assert "kind of image" not in build_page(tmp_path / "out/page")


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
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["recommended_depth"] is None
    # What DVC compares is of the nearest depth, and little enough to be seen beside the params that differ.
    assert metrics["iou_image_low"] == pytest.approx(result["depths"]["L1"]["iou_image_low"], abs=1e-4)
    assert 5 <= len(metrics) <= 7


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

    def measure(_trained, size, *_):
        sizes.append(size)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.evaluation.depth_costs.measure_cost", measure)
    for size in (None, 40):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, SETTINGS.model_copy(update={"latency_size_px": size}))
    assert sizes == [(256, 256), (40, 40)]


def test_a_model_of_other_data_and_a_changed_test_split_are_refused(tmp_path):
    prepared = write_data(tmp_path / "prepared", num_classes=3)
    write_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"num_classes 1; expected 3.*train again"):
        run(tmp_path)
    text = (prepared / "manifest.json").read_text().replace('"num_classes": 3', '"num_classes": 1')
    (prepared / "manifest.json").write_text(text)
    with open(prepared / "test.arrow", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"test.arrow: found the sha256"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


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
    assert re.search(r"^evaluate: IoU on \d+ test images: L1 0\.\d+, L2 .*; L2 is recommended$", printed, re.MULTILINE)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(SystemExit, match="2"):
        run_command(stage.main)
    assert capsys.readouterr().err.startswith("error: model: no such model")


@pytest.mark.parametrize(
    ("use_gpu", "present", "device"), [(True, True, "cuda"), (True, False, "cpu"), (False, True, "cpu")]
)
def test_costs_are_of_this_machine_where_the_gpu_of_the_training_run_was_a_clusters(
    monkeypatch, capsys, use_gpu, present, device
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert stage.choose_device(use_gpu).type == device
    assert ("latency and memory are those of its CPU" in capsys.readouterr().out) == (use_gpu and not present)
