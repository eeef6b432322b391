"""One trial of a search: a run of the train stage with fewer epochs, as one plain process or as a Ray Train run.

After each epoch it saves a checkpoint, as train does, and reports the best IoU so far of every depth.
"""

from collections.abc import Iterator
from typing import Any

import torch

from pipelines.core.params import Params
from pipelines.storage.run_store import RunStore, open_store
from pipelines.training.epoch_metrics import best_so_far
from pipelines.training.epochs import epochs
from pipelines.training.ray_worker import run_on_ray
from pipelines.training.spec import TrainSpec, make_spec
from pipelines.training.state import TrainState
from pipelines.tuning.algorithms import METRIC, Proposal
from pipelines.tuning.space import Candidate, decode, make_candidate
from unetpp.errors import UserError


def spec_of(candidate: Candidate, search: TrainSpec) -> TrainSpec:
    """The spec of a candidate's training run, on the data of the search."""
    return make_spec(candidate.params, candidate.widths, search.prepared, search.manifest, search.shared)


def trial_rows(spec: TrainSpec, begin: TrainState, until: int) -> Iterator[tuple[dict[str, Any], TrainState | None]]:
    """(row, state to keep) after each epoch; a failed training run ends with a row in which "dead" is the reason.

    From a finished state, the last row is repeated and nothing is trained.
    """
    history, why = begin.history, ""
    if len(history) >= until:
        yield history[-1] | best_so_far(history), None
        return
    try:
        for state in epochs(spec, torch.device("cuda" if spec.train.use_gpu else "cpu"), begin):
            history = state.history
            if not state.step:
                yield history[-1] | best_so_far(history), state
                if state.epoch == until:
                    return
    except UserError as error:  # a non-finite loss, out of memory
        why = str(error)
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        why = f"out of memory in epoch {len(history) + 1}: {reason}"
    yield _dead(history, why), None


def _dead(history: list[dict], why: str) -> dict[str, Any]:
    best = best_so_far(history) if history else {METRIC: 0.0}
    return best | {"epoch": len(history), "dead": why}


def store_of(place: str, name: str, params: Params) -> RunStore:
    """The checkpoints of a trial of the search that is kept at `place`."""
    return open_store(f"{place}/{name}", params.ingest.s3)


def trial(config: dict[str, Any], search: TrainSpec, params: Params, place: str) -> None:
    """One proposal, as one plain process or as a Ray Train run of several, whose rows are passed on to Ray Tune."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    one = Proposal(**config)
    spec, run = spec_of(make_candidate(params, decode(one.config)), search), store_of(place, one.name, params)
    if params.search.num_workers > 1:
        stopped = run_on_ray(spec, one.name, run, callbacks=[TuneReportCallback()])
        # Report the last row again: a trial that had ended before the search was interrupted reports nothing by itself.
        history = TrainState.from_dict(run.newest()[0]).history
        tune.report(_dead(history, stopped) if stopped else history[-1] | best_so_far(history))
        return
    found, passed_over = run.newest()
    for line in passed_over:
        print(f"skipped damaged checkpoint: {line}", flush=True)
    if found:
        print(f"resuming after epoch {found['epoch']}", flush=True)
    elif one.begin:
        found, _ = store_of(place, one.begin, params).newest()
    for row, kept in trial_rows(spec, TrainState.from_dict(found), one.until):
        if kept:
            run.add(kept.to_dict())
        tune.report(row)
