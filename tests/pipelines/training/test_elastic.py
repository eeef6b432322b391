"""Workers that leave, with a notice, and come back: `train.num_workers: [min, max]` on a real cluster of two nodes."""

import csv
import os
import re
import signal
import threading

import pytest
import torch

from pipelines.core.params import override
from pipelines.core.training_sections import Train
from tests.pipelines.training.small import ARGUMENTS, last, spec_of
from tests.ray_cluster import RayCluster
from tests.servers import Answer, Request
from unetpp.errors import UserError
from unetpp.models.model_file import load_model
from unetpp.training.checkpoint import STATE

NOTICE_S = 15  # Ray waits for its end before it starts workers without the node


@pytest.mark.parametrize(
    ("value", "ends"),
    [(3, (3, 3)), ("2", (2, 2)), ([1, 4], (1, 4)), ((2, 8), (2, 8))],
)
def test_number_of_workers_is_one_or_from_fewest_to_most(params, value, ends):
    train = override(params, {"train.num_workers": value, "train.batch_size": 24}).train
    assert (train.min_workers, train.max_workers) == ends
    assert Train.model_validate(train.model_dump(mode="json")) == train


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.num_workers": 0}, r"train\.num_workers: expected a number of processes, or \[fewest, most\].*found 0"),
        ({"train.num_workers": [2]}, r"expected a number of processes.*found \[2\]"),
        ({"train.num_workers": [0, 2]}, r"expected a number of processes.*found \[0, 2\]"),
        ({"train.num_workers": [4, 2]}, r"expected \[fewest, most\] with fewer in front.*found \[4, 2\]"),
        ({"train.num_workers": "many"}, r"expected a number of processes.*found 'many'"),
        (
            {"train.num_workers": [1, 3]},
            r"train\.batch_size is 8 .* multiple of train\.num_workers, which is 3 at most",
        ),
        ({"train.num_workers": [1, 4], "train.accumulate": 4}, r"a process has 2 image\(s\) of a batch"),
        (
            {"train.num_workers": [1, 4], "train.static_graph": True},
            r"set train\.static_graph to false, or train\.num_w",
        ),
    ],
)
def test_workers_that_cannot_be_are_refused_with_what_to_do(params, changes, message):
    with pytest.raises(UserError, match=message):
        override(params, {"train.batch_size": 8} | changes)


def worlds(log: str) -> list[str]:
    """How many workers there were, one time after the other; nodes on one machine print each other's lines again."""
    found = dict.fromkeys(re.findall(r"(\d) of at most 2 workers \(the first has pid (\d+)\)", log))
    return [world for world, _ in found]


class Gates:
    """Holds answers of the store back, so that a training cannot pass an epoch before the test says so."""

    def __init__(self, *epochs: int):
        self.open = {epoch: threading.Event() for epoch in epochs}

    def __call__(self, request: Request, answer: Answer) -> Answer:
        found = re.search(rf"checkpoint_(\d+)_\d+/{STATE}", request.path)
        if request.method == "PUT" and found:
            for epoch, gate in self.open.items():
                if int(found[1]) >= epoch:
                    gate.wait(200)
        return answer


@pytest.mark.ray
@pytest.mark.usefixtures("aws")
def test_training_goes_on_without_a_node_that_is_taken_away_and_with_one_that_comes(
    project, prepared, params, bucket, tmp_path
):
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    shared = {"epochs": 14, "batch_size": 8, "precision": "fp32", "optimizer": "sgd", "learning_rate": 0.02}
    shared["checkpoint_every_steps"] = 3  # of 4 an epoch: workers leave and come in the middle of one
    project.params["ingest"]["s3"]["endpoint"] = bucket.proxy.url
    project.set({"train": shared | {"num_workers": [1, 2]}, "model": {"norm": "group"}})
    project.set({"cluster": {"storage": f"s3://{bucket.name}/shared", "cache": str(tmp_path / "cache")}})
    bucket.fault = gates = Gates(5, 11)
    cluster = RayCluster(num_nodes=2, cpus=1)
    # Without what Ray does to lines that come again: it shows some of them later.
    project.environment = cluster.env | {"RAY_ADDRESS": cluster.driver_address, "RAY_DEDUP_LOGS": "0"}
    project.environment["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"
    training = project.start("train", "--prepared", str(prepared), *ARGUMENTS)
    try:
        project.wait_until(training, "train", lambda log: "epoch 3/14" in log)
        cluster.drain_node(1, NOTICE_S)
        gates.open[5].set()
        project.wait_until(training, "train", lambda log: re.search("process [01] will be preempted", log))
        cluster.kill_node(1)  # as whoever gave the notice does, in the end
        project.wait_until(training, "train", lambda log: worlds(log) == ["2", "1"])
        cluster.add_node(cpus=1)
        project.wait_until(training, "train", lambda log: worlds(log) == ["2", "1", "2"])
        gates.open[11].set()
        assert training.wait(120) == 0, project.log("train")
    finally:
        for gate in gates.open.values():
            gate.set()
        if training.poll() is None:
            os.killpg(training.pid, signal.SIGKILL)
        cluster.close()
    assert worlds(project.log("train")) == ["2", "1", "2"]
    with open(project.folder / "reports/train/curves.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["depth"] == "L2"]
    assert [int(row["epoch"]) for row in rows] == list(range(1, 15))
    whole = last(spec_of(params, prepared, {"norm": "group"}, **shared))
    for row, expected in zip(rows, whole.history, strict=True):
        assert float(row["train_loss"]) == pytest.approx(expected["train_loss"], rel=1e-3)
        assert float(row["learning_rate"]) == pytest.approx(expected["learning_rate"], rel=1e-3)
    trained = load_model(project.folder / "models/train").network.state_dict()
    for key, value in whole.best.weights.items():
        torch.testing.assert_close(trained[key], value, atol=2e-3, rtol=1e-2, msg=key)
