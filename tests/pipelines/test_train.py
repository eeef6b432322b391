"""The train stage with real Ray Train processes."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from pipelines.params import Params
from pipelines.worker import epochs, make_settings, run_name
from unetpp.inference import load_model

ARGUMENTS = (
    "--architecture",
    "architecture.yaml",
    "--runs",
    "runs",
    "--out",
    "models/train",
    "--reports",
    "reports/train",
)


def settings_of(params: Params, prepared: Path, **train) -> dict:
    small = {"epochs": 3, "batch_size": 8, "warmup_epochs": 1, "num_workers": 1} | train
    return make_settings(
        params.model_copy(update={"train": params.train.model_copy(update=small)}), (4, 6, 8), prepared
    )


def last(iterator):
    return list(iterator)[-1]


def test_resumed_training_equals_an_uninterrupted_one_bit_for_bit(params, prepared):
    settings, cpu = settings_of(params, prepared), torch.device("cpu")
    whole = last(epochs(settings, cpu, {}))
    cut = next(epochs(settings, cpu, {}))
    cut = {**cut, "weights": {key: value.clone() for key, value in cut["weights"].items()}}
    resumed = last(epochs(settings, cpu, cut))
    assert all(torch.equal(whole["weights"][key], resumed["weights"][key]) for key in whole["weights"])
    for key in ("val_iou", "train_loss"):
        assert [row[key] for row in whole["history"]] == [row[key] for row in resumed["history"]]


def test_finished_training_yields_nothing_more(params, prepared):
    settings = settings_of(params, prepared, epochs=1)
    done = last(epochs(settings, torch.device("cpu"), {}))
    assert list(epochs(settings, torch.device("cpu"), done)) == []


def test_loss_that_is_not_finite_any_more_ends_the_training(params, prepared):
    settings = settings_of(params, prepared, learning_rate=1e30, optimizer="sgd")
    states = list(epochs(settings, torch.device("cpu"), {}))
    assert "diverged" in states[-1]
    assert len(states) < 3 or states[-1]["diverged"] == 2


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
    names.add(run_name("train", settings | {"prepared": str(tmp_path)}))
    assert len(names) == 4
    assert run_name("train", settings) in names


@pytest.mark.slow
def test_killed_training_goes_on_and_ends_as_an_uninterrupted_one(project, prepared, tmp_path):
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    project.set({"train": {"epochs": 30}})
    arguments = ("--prepared", str(prepared), *ARGUMENTS)

    killed = project.start("train", *arguments)
    give_up = time.monotonic() + 600
    while "epoch 3/30" not in project.log("train"):
        assert killed.poll() is None, project.log("train")
        assert time.monotonic() < give_up, project.log("train")
        time.sleep(0.05)
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
