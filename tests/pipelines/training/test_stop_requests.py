"""A fixed number of workers, whose machines are taken away: with a notice first, then without one."""

import os
import re
import signal

import pytest
import torch

from pipelines.core.params import load_params
from pipelines.storage.places import Folder
from pipelines.storage.run_store import STOP, RunStore
from pipelines.training import stop_requests
from pipelines.training.epochs import Wish
from pipelines.training.spec import make_spec
from pipelines.training.stop_requests import Wishes
from tests.pipelines.training.small import ARGUMENTS, run_processes
from tests.ray_cluster import RayCluster
from unetpp.models.model_file import load_model

EPOCHS = 40  # each takes the two seconds after which Ray's controller is told here to ask for reports
NOTICE_S = 25


def test_checkpoints_are_wished_for_at_the_notice_and_every_ten_seconds_after(tmp_path, monkeypatch):
    clock, threatened, said = [0.0], [], []
    monkeypatch.setattr(stop_requests.time, "monotonic", lambda: clock[0])
    run = RunStore(Folder(tmp_path))
    wishes = Wishes(run, lambda: threatened, said.append)
    assert [wishes(), wishes()] == [Wish.GO_ON, Wish.GO_ON]
    threatened.append(1)
    assert wishes() == Wish.KEEP
    clock[0] = 30.0  # the checkpoint took that long: the next is not due at once
    assert wishes() == Wish.GO_ON
    clock[0] = 39.9
    assert wishes() == Wish.GO_ON
    clock[0] = 40.0
    assert wishes() == Wish.KEEP
    assert said == ["the machine of process 1 will be preempted: saving a checkpoint every 10 s"]
    run.write(STOP, b"")
    assert wishes() == Wish.STOP


@pytest.mark.ray
@pytest.mark.nightly  # test_elastic has a node with a notice, test_ray_faults a fixed number of workers
def test_training_outlives_a_node_that_is_preempted_and_one_that_dies(project, prepared, tmp_path):
    """Both workers' nodes but the head's are lost, and others come; no bit of the weights changes."""
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    project.set({"train": {"epochs": EPOCHS, "num_workers": 2, "batch_size": 14}})
    spec = make_spec(load_params(project.folder / "params.yaml"), (4, 6, 8), prepared)
    whole = run_processes(2, {"whole": (spec, None)}, tmp_path)["whole"][0][-1]
    project.set({"cluster": {"storage": str(tmp_path / "shared"), "cache": str(tmp_path / "cache")}})
    cluster = RayCluster(num_nodes=2, cpus=1)
    project.environment = cluster.env | {"RAY_ADDRESS": cluster.driver_address, "RAY_DEDUP_LOGS": "0"}
    project.environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "2"
    training = project.start("train", "--prepared", str(prepared), *ARGUMENTS)
    try:
        project.wait_until(training, "train", lambda log: f"epoch 2/{EPOCHS}" in log)
        cluster.drain_node(1, NOTICE_S)
        project.wait_until(training, "train", lambda log: "checkpoint in epoch" in log)
        assert re.search("the machine of process [01] will be preempted", project.log("train"))
        cluster.add_node(cpus=1)
        project.wait_until(training, "train", lambda log: starts(log) == 1)
        cluster.kill_node(1)  # as whoever gave the notice does, in the end
        before = last_epoch(project.log("train"))
        project.wait_until(training, "train", lambda log: last_epoch(log) > before + 1)
        cluster.kill_node(2)
        cluster.add_node(cpus=1)
        project.wait_until(training, "train", lambda log: starts(log) == 2)
        assert training.wait(240) == 0, project.log("train")
    finally:
        if training.poll() is None:
            os.killpg(training.pid, signal.SIGKILL)
        cluster.close()
    trained = load_model(project.folder / "models/train").network.state_dict()
    assert {name for name, value in whole.best.weights.items() if not torch.equal(trained[name], value)} == set()


def starts(log: str) -> int:
    """How often the workers went on from a checkpoint."""
    return len(set(re.findall(r"resuming after epoch \d+.*", log)))


def last_epoch(log: str) -> int:
    return max((int(one) for one in re.findall(rf"epoch (\d+)/{EPOCHS}", log)), default=0)
