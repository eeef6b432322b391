"""A training of one process: no Ray, and every fault ends it cleanly or not at all."""

import csv
import json
import resource
import shutil
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.core.params import load_params
from pipelines.storage.places import Folder
from pipelines.storage.run_store import RunStore
from pipelines.training.epochs import epochs
from pipelines.training.in_process import run_alone
from pipelines.training.spec import make_spec
from pipelines.training.state import TrainState
from tests.pipelines.training.small import ARGUMENTS, CPU, assert_same, last, spec_of
from unetpp.data import loader
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.loader import SampleError
from unetpp.errors import UserError
from unetpp.models.model_file import load_model


def test_damaged_newest_checkpoint_is_said_and_the_one_before_goes_on(params, prepared, tmp_path, capsys):
    spec, run = spec_of(params, prepared, checkpoint_every_steps=1), tmp_path / "run"
    for state in islice(epochs(spec, CPU), 3):
        RunStore(Folder(run)).add(state.to_dict())
    newest = max(run.iterdir())
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:-7])
    assert run_alone(spec, RunStore(Folder(run)))
    assert f"skipped damaged checkpoint: {newest}: expected" in capsys.readouterr().out
    assert_same(TrainState.from_dict(RunStore(Folder(run)).newest()[0]), last(spec))


def test_full_disk_is_named_and_the_checkpoint_before_stays_whole(params, prepared, tmp_path):
    """The limit of a file's size stands for the disk: the same write fails in the same way, and needs no root."""
    spec, run = spec_of(params, prepared), tmp_path / "run"
    RunStore(Folder(run)).add(next(epochs(spec, CPU)).to_dict())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="the disk or quota is full, or the file too large"):
            run_alone(spec, RunStore(Folder(run)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in run.iterdir()] == ["checkpoint_000001_00000000"]
    assert RunStore(Folder(run)).newest()[0]["epoch"] == 1
    assert run_alone(spec, RunStore(Folder(run)))


def with_an_image_of_nan(prepared: Path, folder: Path) -> str:
    """Prepared data as float32, of which the third training image has a pixel that is no number; its id."""
    folder.mkdir()
    shutil.copy(prepared / "val.arrow", folder)
    split = Split(prepared / "train.arrow")
    with SplitWriter(folder / "train.arrow") as writer:
        for index in range(len(split)):
            image, mask = (np.array(one) for one in split[index])
            image = image.astype(np.float32) / 255
            if index == 2:
                image[5, 5] = np.nan
            writer.add(split.id(index), "kind", image, mask)
    (folder / "manifest.json").write_bytes((prepared / "manifest.json").read_bytes())
    return split.id(2)


def test_image_that_is_no_number_stops_the_training_by_its_name_or_is_skipped(params, prepared, tmp_path):
    id = with_an_image_of_nan(prepared, tmp_path / "prepared")
    spec = spec_of(params, tmp_path / "prepared", {"norm": "group"})
    with pytest.raises(UserError, match=rf"non-finite loss of the sample\(s\) {id} in epoch 1, step \d of \d; the"):
        last(spec)
    spec = spec_of(params, tmp_path / "prepared", {"norm": "group"}, nonfinite="skip")
    rows = last(spec).history
    assert [row["skipped_steps"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["train_loss"]) for row in rows)


def test_sample_that_cannot_be_made_stops_the_training_with_its_id_the_epoch_and_the_batch(
    params, prepared, tmp_path, monkeypatch
):
    bad = Split(prepared / "train.arrow").id(4)
    make = loader.AugmentedSamples.make

    def broken(self, index, epoch):
        if self.split.id(index) == bad and epoch == 1:
            raise ZeroDivisionError("a bug")
        return make(self, index, epoch)

    monkeypatch.setattr(loader.AugmentedSamples, "make", broken)
    with pytest.raises(SampleError, match=rf"sample '{bad}' in epoch 2: ZeroDivisionError: a bug") as caught:
        run_alone(spec_of(params, prepared), RunStore(Folder(tmp_path / "run")))
    assert any("in epoch 2, step " in note and bad in note for note in caught.value.__notes__)
    assert RunStore(Folder(tmp_path / "run")).newest()[0]["epoch"] == 1  # nothing was lost


@pytest.mark.slow
def test_training_that_was_terminated_interrupted_and_killed_ends_as_an_uninterrupted_one(project, prepared):
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    project.set({"train": {"epochs": 16, "num_workers": 1, "checkpoint_every_steps": 2, "ema": 0.9}})
    arguments = ("--prepared", str(prepared), *ARGUMENTS)

    def stop(after: int, number: int) -> int:
        """The exit code after a signal, which comes when an epoch was done."""
        process = project.start("train", *arguments)
        project.wait_for(process, "train", rf"epoch {after}/16")
        process.send_signal(number)
        code = process.wait(30)
        assert "Traceback" not in project.log("train")
        if number != signal.SIGKILL:
            found = project.folder.glob("runs/*/checkpoint_*/manifest.json")
            places = [(one["epoch"], one["step"]) for one in map(json.loads, map(Path.read_text, found))]
            assert max(places) >= (after, 1)  # of the step that it was in
        assert not (project.folder / "models").exists()
        return code

    assert stop(2, signal.SIGTERM) == 143
    assert "stopped by SIGTERM with a checkpoint; rerun the command to resume" in project.log("train")
    assert stop(5, signal.SIGINT) == 130
    assert "stopping after a checkpoint" in project.log("train")
    stop(8, signal.SIGKILL)
    printed = project.run("train", *arguments)
    assert "resuming after epoch" in printed
    assert "epoch 1/16" not in printed
    with open(project.folder / "reports/train/curves.csv") as file:
        rows = [(int(row["epoch"]), row["depth"]) for row in csv.DictReader(file)]
    assert rows == [(epoch, depth) for epoch in range(1, 17) for depth in ("L1", "L2")]
    whole = last(make_spec(load_params(project.folder / "params.yaml"), (4, 6, 8), prepared))
    weights = load_model(project.folder / "models/train").network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in whole.best.weights.items())
    metrics = json.loads((project.folder / "reports/train/metrics.json").read_text())
    assert (metrics["best_epoch"], metrics["epochs"]) == (whole.best.epoch + 1, 16)
    assert "already finished" in project.run("train", *arguments)


@pytest.mark.slow
def test_memory_of_this_machine_that_runs_out_is_refused_with_what_fits_or_halved():
    """Under a limit of the process's own; the memory of a first step is measured, then half of it is forbidden."""
    code = (
        "import resource, torch\n"
        "from unetpp import NestedUNet\n"
        "from unetpp.errors import UserError\n"
        "from unetpp.training.loop import make_loss, make_optimizer\n"
        "from unetpp.training.step import TrainStep\n"
        "torch.set_num_threads(1)\n"
        "network = NestedUNet((16, 16)).train()\n"
        "loss = make_loss('ce_dice', 'mean', network.depths)\n"
        "optimizer = make_optimizer(network, 'adamw', 1e-3, 0.9, 0.0)\n"
        "step = TrainStep(network, optimizer, loss, torch.device('cpu'), torch.float32)\n"
        "step(torch.randn(1, 3, 256, 256), torch.zeros(1, 256, 256), 1, 1e-3, 0, 0)\n"
        "image, mask = torch.randn(8, 3, 256, 256), torch.zeros(8, 256, 256)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "limit = used + 300 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try:\n"
        "    step(image, mask, 8, 1e-3, 1, 1)\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "step.on_oom = 'halve'\n"
        "print(step(image, mask, 8, 1e-3, 1, 1)[1].item())\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    refused, _, halved = done.stdout.partition("\n")
    assert "out of memory at a batch of 8 image(s) of 256x256 px" in refused
    assert "image(s) at a time fit: set train.accumulate=" in refused
    assert "continuing in 2 parts" in halved
    assert halved.strip().endswith("8.0")
