"""The train stage with real Ray Train processes."""

import copy
import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from pipelines.core.params import Params
from pipelines.training.epochs import epochs
from pipelines.training.spec import make_settings, run_name
from tests.pipelines.training.runs import ARGUMENTS
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.errors import UserError
from unetpp.inference.model_file import load_model


def settings_of(params: Params, prepared: Path, **train) -> dict:
    small = {"epochs": 3, "batch_size": 8, "warmup_epochs": 1, "num_workers": 1} | train
    return make_settings(
        params.model_copy(update={"train": params.train.model_copy(update=small)}), (4, 6, 8), prepared
    )


def last(iterator):
    return list(iterator)[-1]


CROPS = {"crop_px": 24, "foreground_crops": 0.5, "class_weights": "balanced"}


def on_device(params: Params, value: bool) -> Params:
    return params.model_copy(update={"augment": params.augment.model_copy(update={"on_device": value})})


@pytest.mark.parametrize(
    ("train", "device"),
    [({}, False), (CROPS | {"loader_workers": 1}, False), (CROPS | {"ema": 0.9}, True), ({"ema": 0.9}, False)],
    ids=str,
)
def test_resumed_training_equals_an_uninterrupted_one_bit_for_bit(params, prepared, train, device):
    settings, cpu = settings_of(on_device(params, device), prepared, **train), torch.device("cpu")
    whole = last(epochs(settings, cpu, {}))
    cut = next(epochs(settings, cpu, {}))
    cut = copy.deepcopy(cut)
    resumed = last(epochs(settings, cpu, cut))
    assert all(torch.equal(whole["weights"][key], resumed["weights"][key]) for key in whole["weights"])
    kept = whole["best"]["weights"]
    assert all(torch.equal(kept[key], resumed["best"]["weights"][key]) for key in kept)
    for key in ("val_iou", "train_loss"):
        assert [row[key] for row in whole["history"]] == [row[key] for row in resumed["history"]]


def test_averaged_weights_are_what_is_validated_and_kept(params, prepared):
    settings, cpu = settings_of(params, prepared, ema=0.9), torch.device("cpu")
    state = last(epochs(settings, cpu, {}))
    plain = last(epochs(settings_of(params, prepared), cpu, {}))
    assert all(torch.equal(value, plain["weights"][key]) for key, value in state["weights"].items())
    if state["best"]["epoch"] == 2:
        assert all(torch.equal(value, state["ema"][key]) for key, value in state["best"]["weights"].items())
    assert state["history"][-1]["val_iou"] != plain["history"][-1]["val_iou"]
    assert [row["train_loss"] for row in state["history"]] == [row["train_loss"] for row in plain["history"]]


@pytest.mark.parametrize("device", [False, True])
def test_processes_that_make_the_batches_change_no_bit_of_a_training(params, prepared, device):
    trained = [
        last(
            epochs(settings_of(on_device(params, device), prepared, **CROPS, loader_workers=n), torch.device("cpu"), {})
        )
        for n in (0, 2)
    ]
    for key, value in trained[0]["weights"].items():
        assert torch.equal(value, trained[1]["weights"][key])
    assert all(0 <= row["data_wait_share"] <= 1 for row in trained[1]["history"])


def test_weights_of_classes_are_of_the_manifest_or_of_params(params, prepared):
    pixels = json.loads((prepared / "manifest.json").read_text())["class_pixels"]
    split = Split(prepared / "train.arrow")
    masks = [split[index][1] for index in range(len(split))]
    assert pixels == [sum(int((mask == value).sum()) for mask in masks) for value in (0, 1)]
    weights = settings_of(params, prepared, class_weights="balanced")["class_weights"]
    assert weights == pytest.approx([sum(pixels) / (2 * count) for count in pixels])
    assert settings_of(params, prepared, class_weights=(1, 3))["class_weights"] == [1.0, 3.0]
    assert settings_of(params, prepared)["class_weights"] is None


def test_weights_that_the_manifest_cannot_give_are_refused_before_any_training(params, prepared, tmp_path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    del manifest["class_pixels"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: found no class_pixels"):
        settings_of(params, tmp_path, class_weights="balanced")


def test_finished_training_yields_nothing_more(params, prepared):
    settings = settings_of(params, prepared, epochs=1)
    done = last(epochs(settings, torch.device("cpu"), {}))
    assert list(epochs(settings, torch.device("cpu"), done)) == []


def test_loss_that_is_not_finite_any_more_ends_the_training(params, prepared):
    settings = settings_of(params, prepared, learning_rate=1e30, optimizer="sgd", warmup_epochs=0)
    with pytest.raises(UserError, match=r"not finite any more .* in epoch 1, step \d of 4; the\s+batch: \S+, \S+"):
        list(epochs(settings, torch.device("cpu"), {}))


def test_name_of_a_run_changes_with_params_widths_and_data(params, prepared, tmp_path):
    settings = settings_of(params, prepared)
    names = {
        run_name("train", settings),
        run_name("train", settings | {"widths": [4, 6, 9]}),
        run_name("train", settings_of(params, prepared, seed=1)),
    }
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["splits"]["train"]["sha256"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    names.add(run_name("train", settings_of(params, tmp_path)))
    assert len(names) == 4
    assert run_name("train", settings) in names


@pytest.mark.ray
def test_killed_training_goes_on_and_ends_as_an_uninterrupted_one(project, prepared, tmp_path):
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    project.set({"train": {"epochs": 30}})
    arguments = ("--prepared", str(prepared), *ARGUMENTS)

    killed = project.start("train", *arguments)
    project.wait_for(killed, "train", "epoch 3/30")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert "epoch 30/30" not in project.log("train")
    assert not (project.folder / "models").exists()

    printed = project.run("train", *arguments)
    assert "goes on after epoch" in printed
    assert "epoch 1/30" not in printed
    resumed = (project.folder / "reports/train/metrics.json").read_bytes()
    weights = load_model(project.folder / "models/train").network.state_dict()
    with open(project.folder / "reports/train/curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["depth"]) for row in rows] == [(str(e), d) for e in range(1, 31) for d in ("L1", "L2")]

    # Once more, in another folder of runs and without a kill.
    fresh = [argument.replace("runs", "other runs") if argument == "runs" else argument for argument in arguments]
    assert "goes on" not in project.run("train", *fresh)
    assert (project.folder / "reports/train/metrics.json").read_bytes() == resumed
    again = load_model(project.folder / "models/train").network.state_dict()
    assert all(torch.equal(weights[key], again[key]) for key in weights)

    # And what is finished is not trained again.
    assert "finished already" in project.run("train", *arguments)


@pytest.mark.ray
def test_workers_train_from_their_nodes_cache_with_loaders_of_their_own(project, prepared, tmp_path):
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    project.set({"train": {"epochs": 2, "loader_workers": 1}})
    project.set({"cluster": {"storage": str(tmp_path / "storage"), "cache": str(tmp_path / "cache")}})
    printed = project.run("train", "--prepared", str(prepared), *ARGUMENTS)
    assert printed.count("put into") == 2
    assert "epoch 2/2" in printed
    assert "waited for data" in printed
    digests = {file["sha256"] for file in json.loads((prepared / "manifest.json").read_text())["splits"].values()}
    cached = {path.name for path in (tmp_path / "cache").glob("*.arrow")}
    assert len(cached) == 2
    assert cached < {f"{digest}.arrow" for digest in digests}
    # A file that is damaged in the storage, on a node that has it not yet.
    for path in [*(tmp_path / "cache").iterdir(), *(tmp_path / "storage").glob("*.arrow")]:
        if path.parent.name == "cache":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert list((tmp_path / "storage/runs").glob("train-*/checkpoint_000002_*"))  # a shared run is not one in runs/
    assert not list((project.folder / "runs").glob("train-*"))
    shutil.rmtree(tmp_path / "storage/runs")
    fresh = [argument.replace("runs", "other runs") if argument == "runs" else argument for argument in ARGUMENTS]
    printed = project.run("train", "--prepared", str(prepared), *fresh, expect=2)
    assert "error: training stopped:" in printed
    assert "found the sha256" in printed
    assert "Traceback" not in printed


@pytest.mark.ray
def test_sample_that_one_worker_cannot_use_stops_all_at_once_with_its_id(project, prepared, tmp_path):
    """The other worker says the same, long before the time-out for one that is silent; nothing is tried again."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    split = Split(prepared / "train.arrow")
    with SplitWriter(folder / "train.arrow") as writer:
        for index in range(len(split)):
            image, mask = split[index]
            side = 16 if index == 2 else 32
            writer.add(split.id(index), "kind", image[:side].copy(), mask[:side].copy())
    for name in ("val.arrow", "manifest.json"):
        (folder / name).write_bytes((prepared / name).read_bytes())
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    project.set({"train": {"timeout_s": 3000}})
    printed = project.run("train", "--prepared", str(folder), *ARGUMENTS, expect=2)
    assert "error: training stopped:" in printed
    assert f"'{split.id(2)}'" in printed
    assert "in epoch 1" in printed
    assert "of 2)" in printed  # which process
    assert "stack expects each tensor to be equal size" in printed  # the cause
    assert printed.count("error: training stopped:") == 1
    assert "goes on after" not in printed


@pytest.mark.slow
def test_more_workers_than_cores_are_refused_with_the_numbers(project, prepared):
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    project.set({"train": {"num_workers": 512, "batch_size": 512}})
    # There are fewer images than that: first this is said, without any start of Ray.
    printed = project.run("train", "--prepared", str(prepared), *ARGUMENTS, expect=2)
    assert "training image(s) for 512 workers" in printed
    project.set({"train": {"num_workers": 2, "batch_size": 8, "cpus_per_worker": 500}})
    printed = project.run("train", "--prepared", str(prepared), *ARGUMENTS, expect=2)
    assert "need 1000 cores" in printed
    assert "lower train.num_workers" in printed
    assert "Traceback" not in printed
    assert not (project.folder / "models").exists()


@pytest.mark.parametrize("text", ["widths: []", "widths: [8]", "widths: [8, -1]", "widths: eight", "nothing", ""])
def test_architecture_that_is_none_is_refused_by_name(project, prepared, text):
    (project.folder / "architecture.yaml").write_text(text)
    printed = project.run("train", "--prepared", str(prepared), *ARGUMENTS, expect=2)
    assert printed.startswith("error: architecture.yaml: found")
    assert "Traceback" not in printed
