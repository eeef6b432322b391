"""Registering a small family for real: MLflow on SQLite, in a folder with a space in its name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines import register as stage
from pipelines import registry, tracking
from pipelines.files import sha256, write_json
from pipelines.stage import run_command
from unetpp.errors import UserError
from unetpp.inference import Trained, load_model
from unetpp.model import NestedUNet

NAME = "nuclei"
ROOT = Path(__file__).parents[2]
PARAMS = {"train": {"epochs": 2, "learning_rate": 0.002}, "search": {"widths": [[4, 8, 16]]}, "prepare": {"size": None}}
SENTENCE = "L1 is the smallest depth within 0.010 IoU of the best."


def measured(depth: int) -> dict:
    values = {"iou_image": 0.80 + depth / 100, "iou_image_low": 0.78, "iou_image_high": 0.85, "dice_image": 0.9}
    values |= {"latency_ms": 2.0 * depth, "latency_p95_ms": 2.5 * depth, "images_per_s": 300 / depth}
    return values | {"parameters": 1000 * depth, "macs": 10**6, "peak_memory_mib": 10.0, "size_mib": 0.1}


def write_stages(folder: Path) -> None:
    """What the earlier stages would have written."""
    torch.manual_seed(0)
    (folder / "model").mkdir(parents=True)
    Trained(NestedUNet([4, 8, 16]).eval(), 96).save(folder / "model/model.pt")
    splits = {}
    for split in ("train", "val", "test"):
        path = folder / f"prepared/{split}.arrow"
        path.parent.mkdir(exist_ok=True)
        path.write_text(split)
        splits[split] = {"num_images": 4, "sha256": sha256(path), "kinds": {"tissue": 4}}
    write_json(folder / "prepared/manifest.json", {"splits": splits})
    rows = [f"{epoch},L{depth},0.{epoch}{depth},0.5,0.7,0.002" for epoch in range(3) for depth in (1, 2)]
    (folder / "curves.csv").write_text(
        "\n".join(["epoch,depth,val_iou,val_loss,train_loss,learning_rate", *rows]) + "\n"
    )
    depths = {"L1": measured(1), "L2": measured(2), "mean": measured(2)}
    metrics = {
        "recommended_depth": 1,
        "recommendation": SENTENCE,
        "num_images": 4,
        "depths": depths,
        "machine": {"cores": 2},
    }
    write_json(folder / "evaluation/report.json", metrics)
    (folder / "evaluation/report.html").write_text("<h1>report</h1>")


def register(folder: Path, name: str = NAME) -> dict:
    return stage.register(
        folder / "prepared",
        folder / "model",
        folder / "curves.csv",
        folder / "evaluation",
        PARAMS,
        "tests",
        name,
        f"sqlite:///{folder}/mlflow.db",
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project whose family was registered once, at the second attempt: the first was interrupted at L2."""
    folder = tmp_path_factory.mktemp("home") / "a project"
    write_stages(folder)
    upload_model = registry.upload_model
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return upload_model(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "dvc.lock").write_text("schema: '2.0'\n")
        with patch.context() as first:
            first.setattr(registry, "upload_model", interrupted)
            with pytest.raises(KeyboardInterrupt):
                register(folder)
        client = tracking.connect(f"sqlite:///{folder}/mlflow.db")
        assert client.get_registered_model(NAME).aliases == {}
        assert [run.info.status for run in client.search_runs(["1"])] == ["FAILED"]
        yield folder, register(folder)


@pytest.fixture(scope="module")
def client(home):
    return tracking.connect(f"sqlite:///{home[0]}/mlflow.db")


@pytest.fixture(scope="module")
def run(home, client):
    return client.get_run(home[1]["run_id"])


def model_of(client, version: int):
    source = client.get_model_version(NAME, str(version)).source
    return client.get_logged_model(source.removeprefix("models:/"))


@pytest.mark.parametrize("depth", [1, 2])
def test_loaded_model_predicts_what_its_network_does_for_any_batch_and_size(home, client, depth):
    folder, _ = home
    uri = f"models:/{NAME}@L{depth}"
    loaded, channels, size_px, multilabel, classes = registry.load_segmenter(uri, f"sqlite:///{folder}/mlflow.db")
    assert (channels, size_px, multilabel, classes) == (3, 96, False, ["1"])
    segmenter = load_model(folder / "model").segmenter(depth)
    for size in ((1, 3, 33, 57), (3, 3, 64, 64), (5, 3, 17, 100), (1, 3, 1, 1)):
        image = torch.rand(size)
        with torch.inference_mode():
            torch.testing.assert_close(loaded(image), segmenter(image), atol=1e-5, rtol=0)


def test_each_model_has_the_metrics_of_its_depth_and_no_others(home, client):
    for depth, version in ((1, home[1]["versions"]["L1"]), (2, home[1]["versions"]["L2"])):
        model = model_of(client, version)
        found = sorted((metric.key, metric.value) for metric in model.metrics)
        assert found == sorted((key, float(value)) for key, value in measured(depth).items())
        assert {metric.dataset_name for metric in model.metrics} == {"test"}


def test_run_has_curves_by_epoch_and_depth(client, run):
    history = client.get_metric_history(run.info.run_id, "val_iou/L2")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.02), (1, 0.12), (2, 0.22)]
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss")] == [0, 1, 2]
    assert run.data.metrics["iou_image_mean_of_heads"] == pytest.approx(0.82)


def test_run_has_params_commit_files_and_is_finished(client, run):
    assert run.data.params == {
        "train.epochs": "2",
        "train.learning_rate": "0.002",
        "search.widths": "[[4, 8, 16]]",
        "prepare.size": "null",
    }
    assert run.data.tags["mlflow.source.git.commit"]
    assert run.info.status == "FINISHED"
    found = {
        file.path
        for folder in ("report", "pipeline", "model")
        for file in client.list_artifacts(run.info.run_id, folder)
    }
    assert found >= {
        "report/report.html",
        "report/report.json",
        "report/curves.csv",
        "pipeline/dvc.lock",
        "model/model.pt",
    }


def test_run_names_its_data_sets_by_hash(home, run):
    folder, _ = home
    found = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    for split in ("train", "val", "test"):
        assert found[split].digest == sha256(folder / f"prepared/{split}.arrow")[:32]
        assert json.loads(found[split].source)["uri"] == str(folder / f"prepared/{split}.arrow")


def test_description_opens_with_the_decision(home, client):
    _, result = home
    first, second = (client.get_model_version(NAME, str(result["versions"][depth])) for depth in ("L1", "L2"))
    assert first.description.startswith(f"L1: deploy this one. {SENTENCE}")
    assert second.description.startswith("L2: deploy L1, version 1, instead. ")
    assert "| **L2**&nbsp;&nbsp;&nbsp; | **2**" in second.description
    assert f"models:/{NAME}/2" in second.description
    assert client.get_registered_model(NAME).description.startswith(f"**Deploy `models:/{NAME}@recommended`: L1")


def test_versions_say_what_they_are_in_tags(home, client):
    tags = client.get_model_version(NAME, "2").tags
    assert (tags["depth"], tags["widths"], tags["recommended"], tags["verified"]) == ("2", "4, 8, 16", "false", "true")
    assert tags["data_sha256"] == sha256(home[0] / "prepared/manifest.json")
    assert client.get_model_version(NAME, "1").tags["recommended"] == "true"


def test_aliases_are_the_depths_and_the_recommended(home, client):
    aliases = {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}
    assert aliases == {"L1": 1, "L2": 2, "recommended": 1}
    assert home[1]["versions"] == {"L1": 1, "L2": 2}
    assert home[1]["recommended"] == "L1"


def test_missing_alias_is_a_user_error_that_names_those_that_exist(home):
    with pytest.raises(UserError, match="aliases L1, L2, recommended"):
        registry.load_segmenter(f"models:/{NAME}@L7", f"sqlite:///{home[0]}/mlflow.db")
    with pytest.raises(UserError, match=f"it holds models:/{NAME}"):
        registry.load_segmenter("models:/other/1", f"sqlite:///{home[0]}/mlflow.db")


def test_registering_again_makes_nothing_new_and_restores_what_is_missing(home, client, run):
    folder, result = home
    metrics = len(model_of(client, 1).metrics)
    client.delete_registered_model_alias(NAME, "L2")
    client.update_model_version(NAME, "2", "")
    assert register(folder) == result
    assert client.get_model_version_by_alias(NAME, "L2").version == client.get_model_version(NAME, "2").version
    assert client.get_model_version(NAME, "2").description.startswith("L2")
    assert len(client.search_runs([result["experiment_id"]])) == 1
    assert len(client.search_logged_models([result["experiment_id"]])) == 2
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2
    assert len(model_of(client, 1).metrics) == metrics


def test_metrics_of_another_model_are_refused(home, tmp_path):
    folder, _ = home
    metrics = json.loads((folder / "evaluation/report.json").read_text())
    del metrics["depths"]["L2"]
    write_json(tmp_path / "report.json", metrics)
    with pytest.raises(UserError, match="dvc repro evaluate"):
        stage.read_family(folder / "prepared", folder / "model", tmp_path, NAME)


def test_missing_metrics_name_the_stage_that_writes_them(home, tmp_path):
    with pytest.raises(UserError, match="dvc repro evaluate"):
        stage.read_family(home[0] / "prepared", home[0] / "model", tmp_path, NAME)


def test_commit_is_none_without_a_repository(tmp_path):
    assert stage.git_commit(tmp_path) == ("none", False)


def test_changed_code_makes_a_commit_dirty_and_pipeline_outputs_do_not(tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "dvc.lock").write_text("")
    commit, dirty = stage.git_commit(tmp_path)
    assert len(commit) == 40
    assert not dirty
    (tmp_path / "code.py").write_text("")
    assert stage.git_commit(tmp_path) == (commit, True)


def test_nan_is_a_difference():
    segmenter = Trained(NestedUNet([4, 8]).eval(), None).segmenter(1)
    assert stage.difference(segmenter, segmenter) is None
    assert stage.difference(lambda image: segmenter(image) * float("nan"), segmenter) is not None


def test_server_that_is_down_ends_with_exit_code_2(home, tmp_path, monkeypatch, capsys):
    folder, _ = home
    text = (ROOT / "params.yaml").read_text().replace("tracking_uri: null", "tracking_uri: http://127.0.0.1:9")
    (tmp_path / "params.yaml").write_text(text)
    arguments = ["--prepared", folder / "prepared", "--model", folder / "model", "--curves", folder / "curves.csv"]
    arguments += ["--evaluation", folder / "evaluation", "--out", tmp_path / "versions.json"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["register", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        run_command(stage.main)
    assert end.value.code == 2
    assert "error: the MLflow store http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "versions.json").exists()


def test_broken_version_gets_no_alias_and_the_next_attempt_replaces_it(home, client, monkeypatch):
    folder, _ = home
    with monkeypatch.context() as broken:
        broken.setattr(registry, "load_version", lambda name, version: lambda image: image[:, :1])
        with pytest.raises(UserError, match=r"version 1 of broken \(L1\).*No alias was moved"):
            register(folder, "broken")
    assert client.get_registered_model("broken").aliases == {}
    assert client.get_model_version("broken", "1").tags["verified"] == "false"
    assert register(folder, "broken")["versions"] == {"L1": 2, "L2": 3}
