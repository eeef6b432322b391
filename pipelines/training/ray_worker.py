"""A training run on Ray Train: each of its processes, and the driver that starts them.

The training itself is in `pipelines.training.epochs`, which does not use Ray.
"""

import json
import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch.distributed as dist

from pipelines.console.progress import Progress
from pipelines.core.files import scratch
from pipelines.storage.run_store import STOP, RunStore, begin, check_shared
from pipelines.training.epoch_metrics import best_so_far
from pipelines.training.epochs import Wish, epochs
from pipelines.training.liveness import ANSWER_S, Peers, SilentError
from pipelines.training.private_calls import threatened_ranks, torch_config
from pipelines.training.signals import run_stoppable
from pipelines.training.spec import TrainSpec
from pipelines.training.state import TrainState
from pipelines.training.stop_requests import Wishes
from unetpp.errors import UserError
from unetpp.training.memory import is_out_of_memory

RESIZE_EVERY_S = 10  # if the number of workers may change: how often Ray checks for available ones
STOPPED = "stopped"  # the result of a training run that was asked to stop


def train_worker(spec: TrainSpec, run: RunStore) -> str | None:
    """One process of a Ray Train run: resumes from the run's newest intact checkpoint, reports after each epoch.

    Returns:
        None, or why training stopped for good; after an exception Ray would try again.
    """
    import ray.train
    from ray.exceptions import RayError

    logging.getLogger().setLevel("WARNING")  # otherwise every rank prints every report in full
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    peers = Peers(rank, world)
    if problem := _any_problem(spec, run, world):
        return problem
    # Not the checkpoint that Ray considers newest: if the newest is damaged, the one before it is used.
    found, passed_over = run.newest()
    state = TrainState.from_dict(found)
    _agree(run, state, world)
    if rank == 0:
        for line in passed_over:
            print(f"skipped damaged checkpoint: {line}", flush=True)
        if found:
            print(f"resuming after epoch {state.epoch}{state.place}", flush=True)
        if spec.train.max_workers > spec.train.min_workers:
            print(
                f"training on {world} of at most {spec.train.max_workers} workers (the first has pid {os.getpid()})",
                flush=True,
            )
    try:
        return _train(spec, state, run, rank, world)
    except Exception as error:
        if isinstance(error, RayError):
            raise
        if _may_pass(error):
            # When another process ends, this one gets an error; if the other left a note, the note is the cause.
            note, silent = peers.ask()
            if note:
                return note
            if silent:
                raise SilentError(f"{', '.join(silent)} does not answer") from error
            raise
        note = str(error)
        if not isinstance(error, UserError):
            note = "".join(traceback.format_exception(error)) + f" (process {rank} of {world})"
        peers.leave(note)
        return note


def _train(spec: TrainSpec, state: TrainState, run: RunStore, rank: int, world: int) -> str | None:
    import ray.train
    import ray.train.torch

    progress = Progress(spec.train.epochs, state.history)
    watch = progress.step if rank == 0 else lambda *_: None
    wish = Wishes(run, threatened_ranks, progress.say) if rank == 0 else lambda: Wish.GO_ON
    for after in epochs(spec, ray.train.torch.get_device(), state, rank, world, wish, watch):
        row = {"epoch": after.epoch, "step": after.step} if after.step else after.history[-1]
        if after.history:
            row = row | best_so_far(after.history)  # search compares these
        if rank == 0:
            progress.say(f"checkpoint{after.place}") if after.step else progress.epoch(row)
        problem = _save(run, after) if rank == 0 else None
        if problem := _first(problem, world):  # all stop: otherwise the others would wait for this one's report
            return problem
        ray.train.report(row)
        if after.stopped:
            return STOPPED
    return None


def _save(run: RunStore, state: TrainState) -> str | None:
    """Add a checkpoint to the run; returns why that failed, or None."""
    try:
        run.add(state.to_dict())
    except UserError as error:
        return str(error)
    return None


def _agree(run: RunStore, state: TrainState, world: int) -> None:
    """Check that all processes resume from the same checkpoint: on shared storage, some may see a file later.

    Raises:
        ConnectionError: they do not; Ray tries again.
    """
    if world == 1:
        return
    own = (state.epoch, state.step)
    every: list[Any] = [None] * world
    dist.all_gather_object(every, own)
    if len(set(every)) > 1:
        raise ConnectionError(f"{run.name}: the processes found different newest checkpoints, (epoch, step): {every}")


def _may_pass(error: Exception) -> bool:
    """Whether an error may be gone next time: a lost process or machine, but no bug, bad sample or lack of memory."""
    if isinstance(error, UserError) or is_out_of_memory(error):
        return False
    if isinstance(error, dist.DistError | ConnectionError | EOFError):
        return True
    # gloo's errors have no type of their own; neither do those of a loader whose process was killed.
    text = str(error).casefold()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("gloo", "nccl", "connection", "timed out", "ended unexpectedly")
    )


def _any_problem(spec: TrainSpec, run: RunStore, world: int) -> str | None:
    """Why any process cannot access its data or the run's storage; all get the same answer, so that none waits."""
    problem = None
    try:
        check_shared(run)
        spec.open_splits()
    except UserError as error:
        problem = str(error)
    return _first(problem, world)


def _first(problem: str | None, world: int) -> str | None:
    """The first problem of any process, known to all of them."""
    problems = [problem]
    if world > 1:
        problems = [None] * world
        dist.all_gather_object(problems, problem)
    return next((one for one in problems if one), None)


@contextmanager
def reported(log: Callable[[dict], None]) -> Iterator[list]:
    """Callbacks for `run_on_ray` that call `log`, in this process, with the row of each saved epoch."""
    from ray.train import UserCallback

    with scratch() as folder:
        path = folder / "rows"
        os.mkfifo(path)

        class Rows(UserCallback):  # runs in Ray's controller, another process on this machine
            def after_report(self, run_context, metrics, checkpoint):  # noqa: ARG002 - Ray passes them by name
                if "step" not in metrics[0]:
                    path.write_text(json.dumps(metrics[0]) + "\n", encoding="utf-8")

        def read() -> None:
            for line in iter(pipe.readline, "\n"):
                log(json.loads(line))

        thread = threading.Thread(target=read, daemon=True)
        # For reading and writing: otherwise the pipe would end between two rows, when no writer has it open.
        with open(os.open(path, os.O_RDWR), encoding="utf-8") as pipe:
            thread.start()
            try:
                yield [Rows()]
            finally:
                path.write_text("\n", encoding="utf-8")
                thread.join()


def _announcer() -> Any:
    """A callback in Ray's controller that prints why workers are replaced, even if they died without a word."""
    from ray.train import UserCallback

    class Announce(UserCallback):
        def after_exception(self, run_context, worker_exceptions):  # noqa: ARG002 - Ray passes them by name
            told = {line for rank, error in worker_exceptions.items() if (line := describe_loss(rank, error))}
            for line in sorted(told) or ["a process ended"]:
                print(f"{line}; the workers are replaced", flush=True)

    return Announce()


def describe_loss(rank: int, error: Exception) -> str | None:
    """A line about a process that Ray lost; None for one that failed only because another was gone."""
    if isinstance(error, SilentError):
        return str(error)
    if type(error).__name__ == "WorkerHealthCheckTimeoutError":
        return f"process {rank} does not respond to Ray"
    if type(error).__name__ == "WorkerHealthCheckFailedError":
        return f"process {rank} is gone"
    return None if _may_pass(error) else f"process {rank}: {type(error).__name__}: {error}"


def run_on_ray(spec: TrainSpec, name: str, run: RunStore, callbacks: list | None = None) -> str | None:
    """Train with Ray Train; processes, threads, GPUs and restarts follow from params. An interrupted run resumes.

    The processes write checkpoints themselves and report only numbers to Ray: Ray would track checkpoints in a file
    without a checksum, overwritten in place, and could not resume once that file is damaged.

    Returns:
        what `train_worker` returned.

    Raises:
        UserError: the run's storage is not writable, or processes ended more often than `train.max_failures` allows.
        KeyboardInterrupt: Ctrl-C; a checkpoint was kept.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    begin(run)
    train, stack = spec.train, ExitStack()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # every report waits for one; Ray's default is 2
    # For a process that hangs outside an exchange, where no other process waits for it in gloo or NCCL.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(train.timeout_s + 3 * ANSWER_S)
    failures = 3
    if train.max_workers > train.min_workers:
        # Until Ray notices that a node is gone, it tries to place workers there; each try counts as another failure.
        failures += train.max_failures
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    trainer = TorchTrainer(
        partial(train_worker, spec, run),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
            use_gpu=train.use_gpu,
            resources_per_worker={"CPU": train.cpus_per_worker} | ({"GPU": 1} if train.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(stack.enter_context(scratch())),
            failure_config=FailureConfig(max_failures=train.max_failures, controller_failure_limit=failures),
            callbacks=[*(callbacks or ()), _announcer()],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        torch_config=torch_config(backend="nccl" if train.use_gpu else "gloo", timeout_s=train.timeout_s),
    )
    with stack:
        try:
            return run_stoppable(lambda: trainer.fit().return_value, lambda: run.write(STOP, b""))
        except WorkerGroupError as error:
            raise UserError(used_up(name, train.max_failures, error.worker_failures)) from None


def used_up(name: str, max_failures: int, failures: dict[int, Exception]) -> str:
    """The message for processes that ended more often than params allow."""
    told = {describe_loss(rank, error) or f"process {rank} lost the others" for rank, error in failures.items()}
    return (
        f"{name}: the workers ended again after {max_failures} replacement(s), the limit of train.max_failures: "
        f"{'; '.join(sorted(told))}. Check the machine or the cluster, or raise train.max_failures, and rerun the "
        "command: it resumes from the last checkpoint"
    )
