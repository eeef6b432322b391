"""Laws of the engines' rows: one for each that is here, paired with eager fp32, bounded, and the decision's own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import evaluate as stage
from pipelines.core.params import load_params
from pipelines.evaluation import engine_scores
from pipelines.evaluation.engine_scores import Scored, engines_json, estimate_s, image_scores, measure_engines, spread
from pipelines.evaluation.predictor import Predictor
from pipelines.evaluation.quality import measure_quality
from tests.pipelines.evaluation.exported import write_exports
from tests.pipelines.test_evaluate import write_data, write_model
from unetpp.data.arrow_split import Split
from unetpp.engines.engine import ENGINES
from unetpp.engines.family import Family, find_family
from unetpp.engines.torch_engine import TorchEngine
from unetpp.errors import UserError
from unetpp.models.model_file import load_model
from unetpp.network.masks import FOR_INSTANCES

CPU = torch.device("cpu")
SETTINGS = load_params(Path(__file__).parents[3] / "params.yaml").evaluate
SETTINGS = SETTINGS.model_copy(update={"latency_rounds": 3, "throughput_batch": 2, "page_images": 3})
HERE = [name for name, kind in ENGINES.items() if kind.is_here]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a model of one depth, and its exports."""
    folder = tmp_path_factory.mktemp("project")
    write_data(folder / "prepared", [(16, 16), (19, 22)] * 3)
    trained = load_model(write_model(folder / "model", (2, 4)))
    write_exports(folder / "exports", trained, ("onnx", "onnx-int8"))
    return folder


@pytest.fixture(autouse=True)
def _no_process(monkeypatch):
    cold = "pipelines.evaluation.depth_costs.measure_cold_start"
    monkeypatch.setattr(cold, lambda files, *_: dict.fromkeys(files, 1.0))


def run(project, out, exports: str | None = "exports", **changes) -> dict:
    settings = SETTINGS.model_copy(update=changes)
    return stage.evaluate(
        project / "prepared", project / "model", out, settings, CPU, project / exports if exports else None
    )


@pytest.fixture(scope="module")
def scored(project) -> dict[str, Scored]:
    predict = Predictor(load_model(project / "model"), CPU)
    val, test = (Split(project / f"prepared/{name}.arrow") for name in ("val", "test"))
    ious = Scored.of_val(predict, test, 2)
    return {"val": Scored.of_val(predict, val, 2), "test": ious}


@pytest.mark.slow  # three runtimes
def test_every_engine_has_its_row_and_the_decision_is_by_the_one_that_is_asked_for(project, tmp_path):
    report = run(project, tmp_path / "out", engine="onnxruntime", max_latency_ms=1e4, tta="flips")
    rows = report["engines"]["rows"]
    assert [(row["depth"], row["engine"]) for row in rows] == [("L1", name) for name in HERE]
    assert [row["engine"] for row in rows if row["auto"]] == [
        min((row for row in rows if row["within"]), key=lambda row: row["latency_ms"])["engine"]
    ]
    for row in rows:
        assert min(row["latency_ms"], row["images_per_s"], row["size_mib"]) > 0
        assert (row["test_images"], row["val_images"]) == (6, 6)
        assert (row["file"] is None) == (row["peak_memory_mib"] is not None) == row["engine"].startswith("torch")
        if ENGINES[row["engine"]].precision == "fp32":
            assert (abs(row["val_difference_iou"]) < 1e-6, row["within"]) == (True, True)
    # Accuracy is that of eager fp32; latency and memory are the engine's.
    assert report["machine"]["engine"] == report["decision"]["engine"] == "onnxruntime"
    assert rows[0]["test_iou_image"] == pytest.approx(report["depths"]["L1"]["iou_image"], abs=1e-6)
    assert report["depths"]["L1"]["peak_memory_mib"] is None
    assert "ms by onnxruntime meet" in report["recommendation"]
    (row,) = report["tta"]
    assert (row["depth"], row["copies"], row["num_images"]) == ("L1", "flips", 6)
    assert row["gain_iou_low"] <= row["gain_iou"] <= row["gain_iou_high"]
    assert row["iou_image"] - row["gain_iou"] == pytest.approx(rows[0]["val_iou_image"], abs=1e-6)
    assert row["cost_factor"] > 1

    said = json.loads((tmp_path / "out/engines.json").read_text())
    assert list(said) == ["format", "model_sha256", "val_sha256", "tolerance_iou", "engines"]
    keys = {"depth", "engine", "file", "sha256", "iou_image", "difference_iou", "within"}
    assert [set(one) for one in said["engines"]] == [keys] * len(HERE)
    family = find_family(project / "model", project / "exports", tmp_path / "out/engines.json")
    assert set(family.exact(1)) == {row["engine"] for row in rows if row["within"]}


def test_an_engine_that_is_not_there_is_refused_before_anything_is_measured(project, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "measure_devices", None)
    with pytest.raises(UserError, match=r"found onnxruntime.*no export of L1; expected one of torch.*dvc repro"):
        run(project, tmp_path / "out", None, engine="onnxruntime")
    with pytest.raises(UserError, match=r"max_memory_mib: found 5, but openvino .*does not report"):
        run(project, tmp_path / "out", engine="openvino", max_memory_mib=5.0)
    with pytest.raises(UserError, match=r"exports\.json: no such file.* `dvc repro export`"):
        run(project, tmp_path / "out", "prepared")
    assert not (tmp_path / "out").exists()


def test_an_engine_beyond_the_tolerance_is_marked_and_never_taken(project, scored, monkeypatch):
    trained = load_model(project / "model")
    # Of a network that is better by 0.02 on each image of val, these lose more than 0.01.
    better = Scored(scored["val"].split, scored["val"].order, {"L1": scored["val"].ious["L1"] + 0.02}, {})
    monkeypatch.setattr(Family, "engines", lambda *_: ["torch"])
    settings = SETTINGS.model_copy(update={"tolerance_engine_iou": 0.01})
    found = measure_engines(
        Family(trained.about, trained), scored | {"val": better}, settings, (16, 16), CPU, {"L1": 0.1}
    )
    (row,) = found["rows"]
    assert (row["within"], row["auto"]) == (False, False)
    assert row["why"] == "2.00 IoU points below eager fp32, more than the tolerance of 1.00"
    assert not engines_json(found, "a", "b")["engines"][0]["within"]


def test_what_does_not_open_or_takes_too_long_is_left_out_and_said(project, scored, monkeypatch, tmp_path):
    trained = load_model(project / "model")
    shutil.copytree(project / "exports", tmp_path / "exports")
    with open(tmp_path / "exports/L1/model.onnx", "ab") as file:
        file.write(b"x")
    monkeypatch.setattr(Family, "engines", lambda *_: ["torch", "onnxruntime"])
    monkeypatch.setattr(engine_scores, "VAL_S", 0.0)
    monkeypatch.setattr(engine_scores, "AT_ONCE", 2)
    family = Family(trained.about, trained, tmp_path / "exports")
    found = measure_engines(family, scored, SETTINGS, (16, 16), CPU, {"L1": 0.1})
    assert [(row["engine"], row["val_images"], row["test_images"]) for row in found["rows"]] == [("torch", 2, 6)]
    first, second = found["left_out"]
    assert first.startswith("L1 by onnxruntime: ")
    assert "it is damaged" in first
    assert second == "L1 by torch: only 2 of 6 val images, because of the limit of 0 s"


def test_scores_are_in_the_order_that_is_asked_for(project):
    trained = load_model(project / "model")
    engine, split = TorchEngine(trained.segmenter(), trained.about), Split(project / "prepared/test.arrow")
    found = image_scores(engine, split, range(6), 8, "images")
    np.testing.assert_array_equal(image_scores(engine, split, [4, 1, 3], 8, "images"), found[[4, 1, 3]])
    assert np.isnan(found).all(axis=0).tolist() == [False, True]  # of masks alone no AP


def test_an_engine_of_a_model_that_parts_objects_is_judged_by_ap_too(tmp_path, monkeypatch):
    write_data(tmp_path / "prepared", [(16, 16), (19, 22)] * 3, numbered=True)
    trained = load_model(write_model(tmp_path / "model", (2, 4), targets=FOR_INSTANCES))
    predict, split = Predictor(trained, CPU), Split(tmp_path / "prepared/test.arrow")
    fp32 = Scored.of_val(predict, split, 2)
    quality, _ = measure_quality(predict, split, 2, 1.0)
    expected = quality["L1"].per_image()["dsb_ap"]
    np.testing.assert_allclose(fp32.aps["L1"], expected[fp32.order])
    monkeypatch.setattr(Family, "engines", lambda *_: ["torch"])
    better = replace(fp32, aps={"L1": fp32.aps["L1"] + 0.05})
    for val, within, said in ((fp32, True, "; the same AP as eager fp32"), (better, False, "; 5.00 AP points below")):
        scored = {"val": val, "test": fp32}
        found = measure_engines(Family(trained.about, trained), scored, SETTINGS, (16, 16), CPU, {"L1": 0.1})
        (row,) = found["rows"]
        assert (row["within"], said in row["why"]) == (within, True), row["why"]
        assert row["test_ap"] == pytest.approx(expected.mean())


@pytest.mark.parametrize(("length", "number"), [(0, 5), (1, 5), (7, 7), (1000, 200), (3, 2)])
def test_every_beginning_of_what_is_chosen_is_spread_over_all(length, number):
    order = spread(length, number)
    assert len(order) == len(set(order)) == min(length, number)
    assert all(0 <= index < length for index in order)
    if length == 1000:
        assert np.diff(sorted(order[:50])).max() <= 3 * length / 50


def test_the_estimate_is_bounded_by_the_caps_and_grows_with_what_is_installed():
    few = estimate_s(0.01, 4, 10, 10, (), SETTINGS)
    assert few < estimate_s(0.01, 4, 10, 10, (), SETTINGS.model_copy(update={"tta": "all"}))
    assert few <= estimate_s(0.01, 4, 10, 10, ("onnx", "onnx-int8"), SETTINGS)
    huge, more = (estimate_s(1e9, 4, 10**9, one, ("onnx",), SETTINGS) for one in (10**9, 10**12))
    assert huge == more < 3600
