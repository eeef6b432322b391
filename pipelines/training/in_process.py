"""A training run of one process, in this process: no cluster, no process group, the same checkpoints.

It is the same training that Ray would run, so a run may start here and resume there, or the other way round.
"""

import signal
from collections.abc import Callable

import torch

from pipelines.console.progress import Progress
from pipelines.storage.run_store import RunStore
from pipelines.training.epochs import Wish, epochs
from pipelines.training.signals import heard_signals
from pipelines.training.spec import TrainSpec
from pipelines.training.state import TrainState
from unetpp.errors import UserError


def run_alone(spec: TrainSpec, run: RunStore, log: Callable[[dict], None] = lambda _row: None) -> bool:
    """Train, keeping the newest two checkpoints in `run`; an interrupted run resumes.

    Args:
        log: receives the row of each completed epoch.

    Returns:
        False if SIGTERM stopped it; a checkpoint of the current step is kept.

    Raises:
        UserError: there is no GPU, the disk is full, or `epochs` raised it.
        KeyboardInterrupt: after Ctrl-C, also with a checkpoint; after a second one, at once.
    """
    if spec.train.use_gpu and not torch.cuda.is_available():
        raise UserError(
            "train.use_gpu: found true, but torch finds no GPU here; set it to false, or run `unetpp doctor`"
        )
    device = torch.device("cuda" if spec.train.use_gpu else "cpu")
    found, passed_over = run.newest()
    state = TrainState.from_dict(found)
    for line in passed_over:
        print(f"skipped damaged checkpoint: {line}", flush=True)
    progress = Progress(spec.train.epochs, state.history)
    with heard_signals() as signals:

        def wish() -> Wish:
            return Wish.STOP if signals else Wish.GO_ON

        for after in epochs(spec, device, state, wish=wish, watch=progress.step):
            run.add(after.to_dict())
            if after.stopped:
                if signal.SIGINT in signals:
                    raise KeyboardInterrupt
                return False
            if not after.step:
                progress.epoch(after.history[-1])
                log(after.history[-1])
    return True
