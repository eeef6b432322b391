"""Small trainings for the tests of this wing: in this process, and in a group of processes without Ray."""

import multiprocessing
import pickle
import socket
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipelines.core.params import Params
from pipelines.training.epochs import epochs
from pipelines.training.spec import TrainSpec, make_spec
from pipelines.training.state import TrainState

CPU = torch.device("cpu")
ARGUMENTS = ("--architecture", "architecture.yaml", "--runs", "runs", "--out", "models/train")
ARGUMENTS += ("--reports", "reports/train")  # of the stage


def spec_of(params: Params, prepared: Path, model: dict | None = None, augment: dict | None = None, **train):
    """A training run of the widths 4, 6, 8, with changed values of the sections."""
    small = {"epochs": 2, "batch_size": 8, "warmup_epochs": 1, "num_workers": 1, "precision": "fp32"} | train
    changes = {"train": small, "model": model or {}, "augment": augment or {}}
    sections = {name: getattr(params, name).model_copy(update=values) for name, values in changes.items()}
    return make_spec(params.model_copy(update=sections), (4, 6, 8), prepared)


def states_of(spec: TrainSpec, state: TrainState | None = None, rank: int = 0, world: int = 1) -> list[TrainState]:
    """Every state that the training yields, as a checkpoint would hold it: what is trained later does not change it."""
    states = epochs(spec, CPU, state, rank, world)
    return [TrainState.from_dict(pickle.loads(pickle.dumps(one.to_dict()))) for one in states]


def last(spec: TrainSpec, state: TrainState | None = None) -> TrainState:
    """The state at the end."""
    return states_of(spec, state)[-1]


def assert_same(one: TrainState, other: TrainState) -> None:
    """Of all but speeds, bit for bit."""
    for mine, theirs in ((one.weights, other.weights), (one.ema, other.ema), (one.best.weights, other.best.weights)):
        assert (mine is None) == (theirs is None)
        for name, value in (mine or {}).items():
            assert torch.equal(value, (theirs or {})[name]), name
    for row, again in zip(one.history, other.history, strict=True):
        for key in row.keys() - {"images_per_s", "data_wait_share"}:
            assert row[key] == again[key], key


def start_group(world: int, work: Callable, *arguments: Any, timeout_s: float = 1800) -> list[SpawnProcess]:
    """Processes of one gloo group, each of which calls `work(rank, *arguments)`, a function of a module."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    # As bytes: multiprocessing would let the processes share the memory of tensors.
    packed = pickle.dumps((work, arguments))
    processes = [context.Process(target=_join, args=(rank, world, port, timeout_s, packed)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def _join(rank: int, world: int, port: int, timeout_s: float, packed: bytes) -> None:
    work, arguments = pickle.loads(packed)
    torch.set_num_threads(1)
    # torch documents it and does not list it among what it exports.
    store = dist.TCPStore("127.0.0.1", port, world, rank == 0)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s))
    work(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def run_group(world: int, work: Callable, *arguments: Any) -> None:
    """As `start_group`, to the end of all."""
    for process in start_group(world, work, *arguments):
        process.join(600)  # below the half hour for which a process would wait for one that is silent
        assert process.exitcode == 0


def run_processes(world: int, jobs: dict[str, tuple[TrainSpec, Any]], folder: Path) -> dict[str, list[list]]:
    """The states that each process yielded, by the name of the job.

    Args:
        jobs: a training run, and the state that it begins with; or None; or "cut" for one more state, the last of a
            training that goes on from one in the middle of the second epoch.
    """
    run_group(world, _train, world, jobs, folder)
    return {name: [pickle.loads((folder / f"{name}-{rank}").read_bytes()) for rank in range(world)] for name in jobs}


def _train(rank: int, world: int, jobs: dict[str, tuple[TrainSpec, Any]], folder: Path) -> None:
    for name, (spec, how) in jobs.items():
        states = states_of(spec, None if how == "cut" else how, rank, world)
        if how == "cut":
            cut = next(state for state in states if state.epoch == 1 and state.step)
            states.append(states_of(spec, cut, rank, world)[-1])
        (folder / f"{name}-{rank}").write_bytes(pickle.dumps(states))
