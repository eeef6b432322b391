"""One trial of a search: the training of the train stage with fewer epochs, as one plain process or as a Ray Train run.

After each epoch it reports the IoU of every depth, the best so far of each, and keeps a checkpoint.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines.core.files import scratch
from pipelines.core.params import Params
from pipelines.storage.run_store import open_store
from pipelines.training.epoch_metrics import best_so_far
from pipelines.training.epochs import epochs
from pipelines.training.ray_worker import run_on_ray
from pipelines.training.spec import TrainSpec, make_spec, run_name
from pipelines.training.state import TrainState
from pipelines.tuning.candidate_costs import Costs, network_key
from pipelines.tuning.space import Candidate, Config, decode, make_candidate
from unetpp.errors import UserError
from unetpp.training.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint

METRIC = "best_val_iou"  # of the best depth so far: what schedulers and searchers compare
COST = "cost"  # of that depth, for a searcher of a front


def spec_of(candidate: Candidate, search: TrainSpec) -> TrainSpec:
    """The training of a candidate, on the data of the search."""
    return make_spec(candidate.params, candidate.widths, search.prepared, search.manifest, search.shared)


def with_cost(row: dict[str, Any], spec: TrainSpec, costs: Costs, cost: str) -> dict[str, Any]:
    """A row with the cost of the depth that is the best so far."""
    depths = costs[network_key(spec.model, spec.widths)]
    best = max(depths, key=lambda name: row.get(f"best_val_iou_{name}", 0.0))
    return row | {COST: depths[best][cost]}


def trial_rows(spec: TrainSpec, begin: TrainState) -> Iterator[tuple[dict[str, Any], TrainState]]:
    """(row, state to keep) after each epoch; a training that dies of itself ends with a row that has "dead", the why.

    Such an end is a result and is kept like one: it would come again. From a state in which all is done, the last row
    comes once more and nothing is trained.
    """
    history = begin.history
    if begin.dead or begin.is_finished(spec.train.epochs):
        yield _dead(history, begin.dead) if begin.dead else history[-1] | best_so_far(history), begin
        return
    why = None
    try:
        for state in epochs(spec, torch.device("cuda" if spec.train.use_gpu else "cpu"), begin):
            history = state.history
            if not state.step:
                yield history[-1] | best_so_far(history), state
    except UserError as error:  # a loss that is not finite any more, a batch that does not fit
        why = str(error)
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        why = f"out of memory in epoch {len(history) + 1}: {reason}"
    if why:
        yield _dead(history, why), TrainState(epoch=len(history), history=history, dead=why)


def _dead(history: list[dict], why: str) -> dict[str, Any]:
    best = best_so_far(history) if history else {METRIC: 0.0}
    return best | {"epoch": len(history), "dead": why}


def trial(config: Config, search: TrainSpec, params: Params, costs: Costs) -> None:
    """One candidate as one plain process."""
    from ray import tune

    spec, state = spec_of(make_candidate(params, decode(config)), search), TrainState()
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        try:
            with checkpoint.as_directory() as folder:
                state = TrainState.from_dict(load_checkpoint(Path(folder)))
            print(f"resumes after epoch {state.epoch}", flush=True)
        except DamagedCheckpointError as error:
            print(f"begins anew: {error}", flush=True)  # the same seed, so the same training
    for row, kept in trial_rows(spec, state):
        row = with_cost(row, spec, costs, params.search.cost)
        with scratch() as folder:
            save_checkpoint(folder, kept.to_dict())
            tune.report(row, checkpoint=tune.Checkpoint.from_directory(folder))


def distributed_trial(config: Config, search: TrainSpec, params: Params, costs: Costs, runs: str) -> None:
    """One candidate as a Ray Train run of several processes, whose rows go on to Ray Tune.

    The run keeps its own checkpoints and goes on from them by its name.
    """
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    spec = spec_of(make_candidate(params, decode(config)), search)

    class Report(TuneReportCallback):
        def after_report(self, run_context, metrics, checkpoint):
            metrics = [with_cost(metrics[0], spec, costs, params.search.cost)]
            super().after_report(run_context, metrics, checkpoint)

    name = run_name("trial", spec)
    run = open_store(f"{runs}/{name}", params.ingest.s3)
    stopped = run_on_ray(spec, name, run, callbacks=[Report()])
    # Once more what the run ended with: one that had ended before the search was cut reports nothing by itself.
    history = TrainState.from_dict(run.newest()[0]).history
    row = _dead(history, stopped) if stopped else history[-1] | best_so_far(history)
    tune.report(with_cost(row, spec, costs, params.search.cost))
