"""Registering a small family for real: MLflow on SQLite, in a folder with a space in its name."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from pipelines import register as stage
from pipelines.core.command import run_command
from pipelines.core.files import write_json
from pipelines.prediction.opening import Asked, find_model, open_model
from pipelines.registry import mlflow_store, read_back, run_log
from pipelines.registry.lineage import show_lineage
from pipelines.registry.load import fetched_version, load_registered
from tests.pipelines.registry.family import (
    NAME,
    SENTENCE,
    inputs,
    measured,
    register,
    settings,
)
from unetpp.engines.family import find_family, open_engine
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.inference.predictor import Predictor
from unetpp.models.model_file import load_model

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow  # each registration reads its versions back in a process of its own


@pytest.fixture(autouse=True)
def _inside(home, monkeypatch):
    monkeypatch.chdir(home[0])


@pytest.fixture(scope="module")
def client(home):
    return mlflow_store.connect(f"sqlite:///{home[0]}/mlflow.db")


@pytest.fixture(scope="module")
def run(home, client):
    return client.get_run(home[1]["run_id"])


def model_of(client, version: int):
    source = client.get_model_version(NAME, str(version)).source
    return client.get_logged_model(source.removeprefix("models:/"))


@pytest.mark.parametrize("depth", [1, 2])
def test_loaded_model_predicts_what_its_network_does_for_any_batch_and_size(home, depth):
    folder, _ = home
    uri = f"models:/{NAME}@L{depth}"
    trained = load_registered(uri, f"sqlite:///{folder}/mlflow.db")
    found = (trained.network.in_channels, trained.size, trained.network.multilabel, trained.classes, trained.depths)
    assert found == (3, (96, 96), False, ["1"], tuple(range(1, depth + 1)))
    loaded = trained.segmenter()
    segmenter = load_model(folder / "model").segmenter(depth)
    for size in ((1, 3, 33, 57), (3, 3, 64, 64), (5, 3, 17, 100), (1, 3, 1, 1)):
        image = torch.rand(size)
        with torch.inference_mode():
            torch.testing.assert_close(loaded(image), segmenter(image), atol=1e-5, rtol=0)


def test_a_registered_version_is_exported_and_predicted_by_at_any_depth_up_to_its_own(home, repository, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home[0]}/mlflow.db")
    uri, image = f"models:/{NAME}@L2", torch.rand(1, 3, 32, 32).numpy()
    trained = load_model(home[0] / "model")
    assert load_registered(uri).depths == (1, 2)

    def opened(uri: str, engine: str = "torch", **asked):
        return open_model(find_model(uri), Asked(engine=engine, **asked), (32, 32), 1).predictor.engine

    for depth in (1, 2, None):
        expected = Predictor(trained, depth).engine(image)
        np.testing.assert_allclose(opened(uri, depth=depth)(image), expected, atol=1e-5, rtol=0)
    mean = Predictor(trained, heads={1: 1.0, 2: 1.0}).engine(image)
    np.testing.assert_allclose(opened(uri, heads="mean")(image), mean, atol=1e-5, rtol=0)
    by_export = opened(uri, "onnxruntime")  # its own exports came with it
    np.testing.assert_allclose(by_export(image), Predictor(trained, 2).engine(image), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="found 3; expected one of 1, 2"):
        opened(uri, depth=3)


def test_each_model_has_the_metrics_of_its_depth_and_no_others(home, client):
    for depth, version in ((1, home[1]["versions"]["L1"]), (2, home[1]["versions"]["L2"])):
        model = model_of(client, version)
        found = sorted((metric.key, metric.value) for metric in model.metrics)
        assert found == sorted((key, float(value)) for key, value in measured(depth).items())  # hd95_px is null
        assert {metric.dataset_name for metric in model.metrics} == {"test"}


def test_run_has_curves_by_epoch_and_depth(client, run):
    history = client.get_metric_history(run.info.run_id, "val_iou/L2")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.02), (1, 0.12), (2, 0.22)]
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss")] == [0, 1, 2]
    assert run.data.metrics["iou_image_mean_of_heads"] == pytest.approx(0.82)


def test_run_has_params_commit_files_and_is_finished(client, run):
    assert run.data.params == {
        "ingest.kind": "s3",
        "ingest.location": "s3://images/set",
        "train.epochs": "2",
        "train.learning_rate": "0.002",
        "search.widths": "[[4, 8, 16]]",
        "prepare.size": "null",
    }
    assert run.data.tags["mlflow.source.git.commit"]
    assert run.info.status == "FINISHED"
    found = {
        file.path
        for folder in ("report", "pipeline", "model", "search")
        for file in client.list_artifacts(run.info.run_id, folder)
    }
    assert found >= {
        "report/report.html",
        "report/report.json",
        "report/curves.csv",
        "report/system.csv",
        "pipeline/dvc.lock",
        "pipeline/requirements.lock",
        "search/search.csv",
        "model/model.safetensors",
    }


def test_run_names_its_data_sets_by_hash(home, run):
    folder, _ = home
    found = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    for split in ("train", "val", "test"):
        assert found[split].digest == sha256(folder / f"prepared/{split}.arrow")[:32]
        assert found[split].source_type == "s3"
        assert json.loads(found[split].source)["uri"] == "s3://images/set"
        profile = json.loads(found[split].profile)
        assert profile["dvc"] == {"data/raw": "md5:aa.dir", "data/prepared": "md5:bb.dir"}
        assert profile["num_images"] == 8


def test_run_names_the_model_that_its_training_began_with(run):
    assert run.data.tags["init"] == f"models:/older/3 sha256 {'0' * 64}"
    found = {one.dataset.name: one.dataset for one in run.inputs.dataset_inputs}["init"]
    assert (json.loads(found.source), found.digest) == ({"uri": "models:/older/3"}, "0" * 32)


def test_run_has_the_machines_load_over_time(client, run):
    history = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert [(metric.value, metric.timestamp) for metric in history] == [(50, 1700000000000), (51, 1700000002000)]
    assert not [key for key in run.data.metrics if "gpu" in key]  # that machine had none


def test_search_trials_are_runs_within_the_run(client, run):
    inside = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    found = {one.info.run_name: one for one in client.search_runs([run.info.experiment_id], inside)}
    assert sorted(found) == ["trial 0", "trial 1", "trial 2"]
    assert {one.info.status for one in found.values()} == {"FINISHED"}
    assert found["trial 1"].data.params == {"widths": "4 8 12", "train.learning_rate": "0.01"}
    assert found["trial 2"].data.tags["reason"] == "no memory"
    assert found["trial 0"].data.tags["chosen"] == "1"
    assert found["trial 0"].data.metrics["parameters"] == 200
    by_depth = client.get_metric_history(found["trial 0"].info.run_id, "val_iou")
    assert [(one.step, one.value) for one in by_depth] == [(1, 0.6), (2, 0.7)]
    by_epoch = client.get_metric_history(found["trial 0"].info.run_id, "val_iou/L2")
    assert [(one.step, one.value) for one in by_epoch] == [(0, 0.2), (1, 0.4)]


@pytest.mark.usefixtures("client")
def test_evidence_of_a_version_is_fetched_by_alias_and_whole(tmp_path):
    fetched = Path(
        mlflow_store.mlflow.artifacts.download_artifacts(f"models:/{NAME}@L1/evidence", dst_path=str(tmp_path))
    )
    names = {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()}
    assert names >= {"report.html", "report.json", "images.csv"}
    assert {name.split("-")[0] for name in names if "overlays" in name} == {
        f"overlays/{r}" for r in ("best", "median", "worst", "legend.svg")
    }
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=fetched, check=True)
    assert len((fetched / "SHA256SUMS").read_text().splitlines()) == len(names) - 1


@pytest.mark.parametrize("depth", [1, 2])
def test_a_version_carries_exports_up_to_its_depth_and_what_was_measured_of_them(home, client, depth):
    uri = f"models:/{NAME}@L{depth}"
    with fetched_version(uri, f"sqlite:///{home[0]}/mlflow.db") as folder:
        names = {line.partition("  ")[2] for line in (folder / "SHA256SUMS").read_text().splitlines()}
        exports = {f"exports/L{one}/model.onnx" for one in range(1, depth + 1)}
        assert {name for name in names if name.startswith("exports/")} == exports | {"exports/exports.json"}
        own = sha256(folder / "model.safetensors")
        for path in ("exports/exports.json", "engines.json"):
            assert json.loads((folder / path).read_text())["model_sha256"] == own
        rows = json.loads((folder / "engines.json").read_text())["engines"]
        assert [row["depth"] for row in rows] == [f"L{one}" for one in range(1, depth + 1) for _ in range(2)]
        requirements = (folder / "requirements.txt").read_text()
        assert ("onnxruntime==" in requirements, "openvino==" in requirements) == (True, True)
        family = find_family(folder)
        assert family.exact(depth) == ["torch", "onnxruntime"]
        image = torch.rand(1, 3, 32, 32).numpy()
        expected = Predictor(load_model(home[0] / "model"), depth).engine(image)
        for name in ("torch", "onnxruntime"):
            np.testing.assert_allclose(open_engine(family, depth, name)(image), expected, atol=1e-5, rtol=0)
    description = client.get_model_version(NAME, str(home[1]["versions"][f"L{depth}"])).description
    assert f"The version carries the exports of L1 to L{depth}: " in description
    assert "| **onnxruntime (auto)**" in description
    shown = show_lineage(uri, f"sqlite:///{home[0]}/mlflow.db")
    assert "onnxruntime: 2.5 ms, IoU on val 0.800 (−0.11 points); the choice of `auto` there" in shown  # noqa: RUF001


def test_a_version_whose_export_answers_something_else_is_refused(home):
    trained = load_model(home[0] / "model")
    image = np.zeros((8, 8, 3), np.uint8)
    probs = Predictor(trained).probs(image)
    served = SimpleNamespace(predict=lambda *_: probs)
    other = Predictor(trained, 1).engine
    reason = read_back.differing(trained, served, {"image0": image, "L2/image0": probs}, 2, other)
    assert "by torch differs from its network" in reason


def test_description_opens_with_the_decision(home, client):
    _, result = home
    first, second = (client.get_model_version(NAME, str(result["versions"][depth])) for depth in ("L1", "L2"))
    assert first.description.startswith(
        f"L1: the depth to deploy from this run. {SENTENCE}\n\n**Now:** version 1 is champion."
    )
    assert second.description.startswith("L2: deploy L1 of this run, version 1, instead. ")
    assert "| **L2**&nbsp;&nbsp;&nbsp; | **2**" in second.description
    assert f"models:/{NAME}/2" in second.description
    assert client.get_registered_model(NAME).description.startswith(
        "**Deploy L1 of the latest registered run: version 1 "
    )


def test_versions_say_what_they_are_in_tags(home, client):
    tags = client.get_model_version(NAME, "2").tags
    assert (tags["depth"], tags["widths"], tags["recommended"], tags["verified"]) == ("2", "4, 8, 16", "false", "true")
    assert tags["data_sha256"] == sha256(home[0] / "prepared/manifest.json")
    assert client.get_model_version(NAME, "1").tags["recommended"] == "true"
    expected = {"seed": "0", "precision": "fp32", "licence": "CC-BY-4.0", "intended_use": "to count nuclei"}
    expected |= {"run_id": home[1]["run_id"], "promotion": "champion"}
    assert {key: client.get_model_version(NAME, "1").tags[key] for key in expected} == expected
    assert tags["leak_check"] == "passed: of 9 groups and 2 pairs of near-duplicates, none is in two splits"


def test_aliases_are_the_depths_and_the_recommended(home, client):
    aliases = {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}
    assert aliases == {"L1": 1, "L2": 2, "recommended": 1, "champion": 1}
    assert home[1]["versions"] == {"L1": 1, "L2": 2}
    assert home[1]["recommended"] == "L1"


def test_missing_alias_is_a_user_error_that_names_those_that_exist(home):
    with pytest.raises(UserError, match="aliases L1, L2, champion, recommended"):
        load_registered(f"models:/{NAME}@L7", f"sqlite:///{home[0]}/mlflow.db")
    with pytest.raises(UserError, match=f"which has models:/{NAME}"):
        load_registered("models:/other/1", f"sqlite:///{home[0]}/mlflow.db")


def test_registering_again_makes_nothing_new_and_restores_what_is_missing(home, client):
    folder, result = home
    metrics = len(model_of(client, 1).metrics)
    client.delete_registered_model_alias(NAME, "L2")
    client.update_model_version(NAME, "2", "")
    assert register(folder) == result
    assert client.get_model_version_by_alias(NAME, "L2").version == client.get_model_version(NAME, "2").version
    assert client.get_model_version(NAME, "2").description.startswith("L2")
    assert len(client.search_runs([result["experiment_id"]])) == 1 + 3
    assert len(client.search_logged_models([result["experiment_id"]])) == 2
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2
    assert len(model_of(client, 1).metrics) == metrics


def test_metrics_of_another_model_are_refused(home, tmp_path):
    folder, _ = home
    metrics = json.loads((folder / "evaluation/report.json").read_text())
    metrics["model_sha256"] = "0" * 64
    write_json(tmp_path / "report.json", metrics)
    with pytest.raises(UserError, match="dvc repro evaluate"):
        stage.read_family(replace(inputs(folder), evaluation=tmp_path), settings())


def test_missing_metrics_name_the_stage_that_writes_them(home, tmp_path):
    with pytest.raises(UserError, match="dvc repro evaluate"):
        stage.read_family(replace(inputs(home[0]), evaluation=tmp_path), settings())


def test_server_that_is_down_ends_with_exit_code_2(home, tmp_path, monkeypatch, capsys):
    folder, _ = home
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["register"]["tracking_uri"] = "http://127.0.0.1:9"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    made = {"prepared": "prepared", "model": "model", "curves": "train/curves.csv", "evaluation": "evaluation"}
    arguments = [word for name, path in made.items() for word in (f"--{name}", str(folder / path))]
    arguments += ["--out", str(tmp_path / "versions.json")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow_store, "RETRY_AFTER_S", (0,))
    monkeypatch.setattr(sys, "argv", ["register", *arguments])
    with pytest.raises(SystemExit) as end:
        run_command(stage.main)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "error: the MLflow store http://127.0.0.1:9 cannot be reached" in printed.err
    assert printed.out.count("trying again in 0 seconds") == 1
    assert not (tmp_path / "versions.json").exists()


def test_version_that_predicts_something_else_gets_no_alias_and_the_next_attempt_replaces_it(home, client, monkeypatch):
    folder, _ = home
    with monkeypatch.context() as broken:
        broken.setattr(read_back, "check_in_clean_process", lambda *_: {1: "differs from its network by up to 0.5"})
        with pytest.raises(UserError, match=r"version 1 of broken \(L1\).*No alias was moved"):
            register(folder, "broken")
    assert client.get_registered_model("broken").aliases == {}
    assert client.get_model_version("broken", "1").tags["verified"] == "false"
    assert register(folder, "broken")["versions"] == {"L1": 3, "L2": 2}


def test_version_of_which_a_byte_was_lost_in_the_store_gets_no_alias(home, client, monkeypatch):
    """For real: the file is damaged where MLflow keeps it, between the upload and the reading back."""
    folder, _ = home

    def damage(client_, family, versions):
        model = client_.get_logged_model(client_.get_model_version("damaged", versions[2]).tags["model_id"])
        path = Path(model.artifact_location.removeprefix("file://")) / "evidence/images.csv"
        path.write_bytes(path.read_bytes()[:-1])
        check(client_, family, versions)

    check = stage.check_versions
    monkeypatch.setattr(read_back, "check_in_clean_process", lambda *_: {})  # the bytes alone are the matter here
    monkeypatch.setattr(stage, "check_versions", damage)
    with pytest.raises(UserError, match=r"version 2 of damaged \(L2\).*evidence/images\.csv: found sha256"):
        register(folder, "damaged")
    assert client.get_registered_model("damaged").aliases == {}


def test_a_run_shows_the_params_that_decide_what_a_model_is():
    shown = run_log.telling(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert {"ingest.location", "prepare.size", "search.widths", "train.loss", "augment.flips"} <= set(shown)
    assert not {"cluster.python", "train.timeout_s", "ingest.s3.region", "prepare.max_pixels"} & set(shown)
    assert len(shown) < 75
