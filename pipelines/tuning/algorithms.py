"""What decides which trials a search has and how long each trains: searchers, schedulers, the hours, on Ray Tune."""

import json
import time
from functools import partial
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipelines.storage.run_store import RunStore
from pipelines.tuning.space import Config, Space, mutable
from pipelines.tuning.trials import COST, METRIC
from unetpp.errors import UserError
from unetpp.files import parse_json


class Deadline(tune.Stopper):
    """Ends the search when its hours are over, those of earlier commands counted in."""

    def __init__(self, hours: float, runs: RunStore, file: str):
        self._seconds, self._runs, self._file = hours * 3600, runs, file
        self._every_s = max(1, runs.place.ask_every_s)
        self._began: float | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_began": None}

    def __call__(self, trial_id: str, result: dict) -> bool:  # noqa: ARG002 - the names are Tune's
        return False

    def stop_all(self) -> bool:
        now = time.monotonic()
        if self._began is None:
            self._began = now - spent_s(self._runs, self._file)
            self._noted = 0.0
        over = now - self._began >= self._seconds
        if over or now - self._noted > self._every_s:
            self._noted = now
            self._runs.write(self._file, json.dumps({"spent_s": now - self._began}).encode())
        return over


def spent_s(runs: RunStore, file: str) -> float:
    """Seconds that earlier commands of the same search have taken."""
    return parse_json(runs.read(file) or '{"spent_s": 0}', file, "remove it", ("spent_s",))["spent_s"]


def make_searcher(space: Space):
    """What proposes configs, and the number of trials."""
    search = space.params.search
    if space.configs is not None:
        # Tune ignores its own max_concurrent_trials for such a generator. PBT compares its whole population, whose
        # trials take turns where they do not fit beside each other.
        at_once = 0 if search.scheduler == "pbt" else search.max_concurrent
        points = [dict(config) for config in space.configs]
        searcher = BasicVariantGenerator(points_to_evaluate=points, constant_grid_search=True, max_concurrent=at_once)
        return searcher, len(points)
    try:
        import optuna
    except ImportError:
        raise UserError(
            f"search.searcher is {search.searcher}, which needs Optuna: pip install 'unetpp[search]', or take grid or "
            "random"
        ) from None
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    startup = max(2, min(10, (search.num_trials or 1) // 3))  # drawn at random first
    if search.searcher == "nsga2":
        population = max(2, min(50, (search.num_trials or 1) // 4))
        sampler: Any = optuna.samplers.NSGAIISampler(seed=search.seed, population_size=population)
    else:
        sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=startup)
    front = search.objective == "front"
    searcher = OptunaSearch(
        metric=[METRIC, COST] if front else METRIC, mode=["max", "min"] if front else "max", sampler=sampler
    )
    # In batches: else what Optuna knows when it is asked would depend on which trial happened to end first.
    return ConcurrencyLimiter(searcher, max_concurrent=search.max_concurrent, batch=True), search.num_trials


def make_scheduler(space: Space):
    """What ends trials early or changes them; None lets each train to its end.

    All compare the best depth so far after the same number of epochs.
    """
    from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

    search = space.params.search
    both: dict[str, Any] = {"time_attr": "epoch", "metric": METRIC, "mode": "max"}
    if search.scheduler == "asha":
        return ASHAScheduler(
            max_t=search.epochs, grace_period=search.grace_epochs, reduction_factor=search.reduction, **both
        )
    if search.scheduler == "pbt":
        domains: dict[str, Any] = {
            key: one if isinstance(one := space.dimensions[key], list) else domain(one) for key in mutable(space)
        }
        ranges = {key: one for key, one in space.dimensions.items() if isinstance(one, dict)}
        return PopulationBasedTraining(
            perturbation_interval=search.grace_epochs,
            hyperparam_mutations=domains,
            custom_explore_fn=partial(_clip, ranges=ranges),
            synch=True,  # so that the same seed gives the same trials
            log_config=False,
            **both,
        )
    return None


def domain(dimension: list[str] | dict[str, list]):
    """A dimension of the space as Tune has it."""
    if isinstance(dimension, list):
        return tune.choice(dimension)
    kind, (low, high) = next(iter(dimension.items()))
    make = {"uniform": tune.uniform, "log": tune.loguniform, "int": lambda low, high: tune.randint(low, high + 1)}
    return make[kind](low, high)


def _clip(config: Config, ranges: dict[str, dict[str, list]]) -> Config:
    """PBT steps by a fifth up or down, and may step out of a range."""
    for key, one in ranges.items():
        low, high = next(iter(one.values()))
        config[key] = min(max(config[key], low), high)
    return config


def rungs(space: Space) -> set[int]:
    """The epochs after which ASHA compares."""
    search = space.params.search
    found, epoch = set(), float(search.grace_epochs)
    while epoch <= search.epochs:
        found.add(int(np.ceil(epoch)))
        epoch *= search.reduction
    return found
