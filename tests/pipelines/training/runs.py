"""Training runs for tests: small settings, one process or several, and what makes two runs the same."""

import copy
import multiprocessing
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.core.params import Params
from pipelines.training.epochs import epochs
from pipelines.training.spec import make_settings
from tests.servers import free_port
from unetpp import NestedUNet
from unetpp.training.batch_norm import average_statistics, find_batch_norms

CPU = torch.device("cpu")
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


def settings_of(params: Params, prepared: Path, model: dict | None = None, **train) -> dict:
    small = {"epochs": 2, "batch_size": 8, "warmup_epochs": 1, "num_workers": 1, "precision": "fp32"} | train
    changes = {"train": params.train.model_copy(update=small), "model": params.model.model_copy(update=model or {})}
    return make_settings(params.model_copy(update=changes), (4, 6, 8), prepared)


def last(iterator) -> dict:
    return list(iterator)[-1]


def assert_same(one: dict, other: dict) -> None:
    for key in ("weights", "ema"):
        for name, value in one.get(key, {}).items():
            assert torch.equal(value, other[key][name]), name
    for name, value in one["best"]["weights"].items():
        assert torch.equal(value, other["best"]["weights"][name]), name
    for row, again in zip(one["history"], other["history"], strict=True):
        for key in row.keys() - {"images_per_s", "data_wait_share"}:
            assert row[key] == again[key], key


def _process(rank: int, world: int, port: int, folder: Path) -> None:
    """Run what lies in job.pkl, by name: settings, and a state to begin with, or "cut" to go on from one in the middle.

    Write the states that there were.
    """
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, world, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    jobs = pickle.loads((folder / "job.pkl").read_bytes())
    for name, (settings, how) in jobs.items():
        begin = how if isinstance(how, dict) else {}
        states = [copy.deepcopy(state) for state in epochs(settings, CPU, begin, rank, world)]
        if how == "cut":
            cut = next(state for state in states if state["epoch"] == 1 and "step" in state)
            states.append(list(epochs(settings, CPU, cut, rank, world))[-1])
        torch.save(states, folder / f"{name}-{rank}.pt")
    network = NestedUNet((4, 6))
    for norm in find_batch_norms(network):
        norm.running_mean.fill_(rank)
        norm.running_var.fill_(10 * rank)
    average_statistics(network, world)
    for norm in find_batch_norms(network):
        assert torch.equal(norm.running_mean, torch.full_like(norm.running_mean, (world - 1) / 2))
        assert torch.equal(norm.running_var, torch.full_like(norm.running_var, 10 * (world - 1) / 2))
    dist.barrier()
    dist.destroy_process_group()


def run_processes(world: int, jobs: dict, folder: Path) -> dict[str, list[list[dict]]]:
    """The states that each process yielded, by the name of the job."""
    (folder / "job.pkl").write_bytes(pickle.dumps(jobs))
    port, context = free_port(), multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, world, port, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(world)] for name in jobs
    }


def wait_for(project, process, sign: Callable[[str], bool], timeout_s: int = 240) -> None:
    give_up = time.monotonic() + timeout_s
    while not sign(log := project.log("train")):
        assert process.poll() is None, log
        assert time.monotonic() < give_up, log
        time.sleep(0.1)
