"""The training as Ray Train runs it: one process of several, and the run of them all.

This is the one file that imports ray.train; the training itself is `pipelines.training`.
"""

import json
import logging
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipelines.feed import append, feed
from pipelines.files import check_space, disk_errors
from pipelines.progress import Progress, screen_of
from pipelines.rows import best_so_far
from pipelines.settings import open_splits
from pipelines.training import epochs
from unetpp.checkpoint import newest_checkpoint, save_checkpoint
from unetpp.errors import UserError
from unetpp.memory import is_out_of_memory

STOPPED = "stopped"  # what a training returns that was asked to stop
STOP_FILE = "stop"  # in a run's folder: asks it to stop


def train_worker(settings: dict[str, Any]) -> str | None:
    """One process of a Ray Train run: resumes from the run's newest whole checkpoint, reports after each epoch.

    Returns:
        None, or why the training stopped for good; an exception would be tried again by Ray.
    """
    import ray.train
    from ray.exceptions import RayError

    logging.getLogger().setLevel("WARNING")  # else every report is printed whole, by every rank
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    store = _Notes(world)
    checkpoint = ray.train.get_checkpoint()
    state: dict = {}
    if checkpoint:
        # The run's folder, and not this one checkpoint: should it be torn, the one before is taken.
        state, passed_over = newest_checkpoint(Path(checkpoint.path).parent)
        if rank == 0:
            for line in passed_over:
                print(f"passed over: {line}", flush=True)
            print(f"goes on after epoch {state.get('epoch', 0)}{_inside(state)}", flush=True)
    if problem := _any_problem(settings, world):
        return problem
    try:
        return _train(settings, state, rank, world)
    except Exception as error:
        if isinstance(error, RayError):
            raise
        if _may_pass(error):
            # Another process's end shows as an error here: should it have left a note, that is the cause.
            if note := store.read():
                return note
            raise
        note = str(error)
        if not isinstance(error, UserError):
            note = "".join(traceback.format_exception(error)) + f" (process {rank} of {world})"
        store.write(note)
        return note


def _train(settings: dict[str, Any], state: dict, rank: int, world: int) -> str | None:
    import ray.train
    import ray.train.torch

    num_epochs, run = settings["params"]["train"]["epochs"], settings.get("run")
    stop_file = Path(run, STOP_FILE) if run else None
    screen = screen_of(settings)
    progress = Progress(num_epochs, screen, state.get("history", ()))
    watch = progress.step if rank == 0 else lambda *_: None
    for after in epochs(
        settings,
        ray.train.torch.get_device(),
        state,
        rank,
        world,
        lambda: bool(stop_file and stop_file.exists()),
        watch,
    ):
        inside = "step" in after
        row = {"epoch": after["epoch"], "step": after["step"]} if inside else after["history"][-1]
        if after["history"]:
            row = row | best_so_far(after["history"])  # what a search compares
        if rank == 0:
            screen.say(f"checkpoint{_inside(after)}") if inside else progress.epoch(row)
        with tempfile.TemporaryDirectory() as folder:
            problem = _save(after, Path(folder), run) if rank == 0 else None
            if problem := _first(problem, world):  # all stop: the others would wait for this one's report
                return problem
            ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder) if rank == 0 else None)
        if "stopped" in after:
            return STOPPED
    return None


def _save(state: dict, folder: Path, run: str | None) -> str | None:
    """Write a checkpoint for Ray to copy into the run's folder; the answer is why that cannot be."""
    try:
        with disk_errors(folder):
            save_checkpoint(folder, state)
        if run and Path(run).is_dir():  # Ray would copy a part of it, and try the same again
            check_space(run, sum(file.stat().st_size for file in folder.iterdir()))
    except UserError as error:
        return str(error)
    return None


def _inside(state: dict) -> str:
    return f" in epoch {state['epoch'] + 1}, step {state['step']}" if "step" in state else ""


def _may_pass(error: Exception) -> bool:
    """Whether an error may not come again: a process or a machine that is gone, and no bug, sample or memory."""
    if isinstance(error, UserError) or is_out_of_memory(error):
        return False
    if isinstance(error, dist.DistError | ConnectionError | EOFError):
        return True
    # gloo's errors have no type of their own; nor have those of a loader whose process was killed.
    text = str(error).casefold()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("gloo", "nccl", "connection", "timed out", "ended unexpectedly")
    )


class _Notes:
    """Why a process gave up, for the others, which else would only see that it is gone."""

    def __init__(self, world: int):
        # Held here, for the store to outlive the process group.
        self._store = dist.distributed_c10d._get_default_store() if world > 1 else None

    def write(self, note: str) -> None:
        """Leave the note and the group: the others' exchange fails now, and not after a time-out."""
        if self._store is None:
            return
        self._store.set("why", note)
        dist.destroy_process_group()

    def read(self) -> str | None:
        if self._store is None:
            return None
        try:
            return self._store.get("why").decode() if self._store.check(["why"]) else None
        except RuntimeError:  # the process that keeps the store is gone
            return None


def _any_problem(settings: dict[str, Any], world: int) -> str | None:
    """What keeps the data of any process from being read, the same in all: none waits for one that gave up."""
    problem = None
    try:
        open_splits(settings)
    except UserError as error:
        problem = str(error)
    return _first(problem, world)


def _first(problem: str | None, world: int) -> str | None:
    """The first problem that any process has, for all of them."""
    problems = [problem]
    if world > 1:
        problems = [None] * world
        dist.all_gather_object(problems, problem)
    return next((one for one in problems if one), None)


@contextmanager
def reported(log: Callable[[dict], None]) -> Iterator[list]:
    """Callbacks for `run_on_ray`, by which `log` gets, in this process, the row of each epoch that was kept."""
    from ray.train import UserCallback

    with feed(lambda line: log(json.loads(line))) as path:

        class Rows(UserCallback):  # runs in Ray's controller, a process on the machine of this one
            def after_report(self, run_context, metrics, checkpoint):
                if "step" not in metrics[0]:
                    append(path, json.dumps(metrics[0]))

        yield [Rows()]


def run_on_ray(settings: dict[str, Any], name: str, runs: Path, callbacks: list | None = None) -> str | None:
    """Train with Ray Train by params alone: processes, threads, GPUs, restarts. A run of the same name goes on.

    Checkpoints are kept in `runs / name`, the newest two.

    Returns:
        what `train_worker` returned.
    """
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    train = settings["params"]["train"]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings | {"run": str((runs / name).absolute())},
        scaling_config=ScalingConfig(
            num_workers=train["num_workers"],
            use_gpu=train["use_gpu"],
            resources_per_worker={"CPU": train["cpus_per_worker"]} | ({"GPU": 1} if train["use_gpu"] else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(runs.absolute()),
            failure_config=FailureConfig(max_failures=train["max_failures"], controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        torch_config=TorchConfig(backend="nccl" if train["use_gpu"] else "gloo", timeout_s=train["timeout_s"]),
    )
    return trainer.fit().return_value
