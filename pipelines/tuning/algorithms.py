"""The algorithms that choose the trials of a search and their lengths: the whole list, Optuna, a population, ASHA."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipelines.training.epoch_metrics import best_so_far
from pipelines.tuning.candidate_costs import Costs, key_of
from pipelines.tuning.pareto import Trial
from pipelines.tuning.space import Config, Space, decode, draw_value, make_candidate, mutable
from unetpp.errors import UserError, to_install

METRIC = "best_val_iou"  # of the best depth so far: compared by schedulers and searchers
STEPS = (0.8, 1.2)  # factors by which PBT changes a number, and how often it resamples one instead: as in Ray Tune
DRAWN_ANEW = 0.25


@dataclass(frozen=True)
class Proposal:
    """A trial to be trained; with PBT, a part of one.

    Attributes:
        number: of the trial, from 1.
        config: in the format of the space.
        until: the epoch after which it ends.
        begin: the name of the proposal from whose end it starts; "" starts from scratch.
    """

    number: int
    config: Config
    until: int
    begin: str = ""

    @property
    def name(self) -> str:
        """The name of its checkpoints and its record, unique to this proposal."""
        facts = json.dumps([self.config, self.until, self.begin], sort_keys=True)
        return f"trial-{self.number:04}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def proposals(space: Space, costs: Costs, ended: Mapping[str, Trial]) -> Iterator[list[Proposal]]:
    """The trials of a search in batches, by only params and seed; `ended` has all earlier ones by name."""
    search = space.params.search
    if space.configs is None:
        return _by_optuna(space, costs, ended)
    if search.scheduler == "pbt":
        return _populations(space, ended)
    return iter([[Proposal(number, config, search.epochs) for number, config in enumerate(space.configs, 1)]])


def _by_optuna(space: Space, costs: Costs, ended: Mapping[str, Trial]) -> Iterator[list[Proposal]]:
    """In batches: otherwise Optuna's state would depend on which trial happened to end first."""
    search = space.params.search
    try:
        import optuna
    except ImportError:
        raise UserError(
            f"search.searcher is {search.searcher}, which needs Optuna: {to_install('search')}, or use grid or random"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    num = search.num_trials or 1
    if search.searcher == "nsga2":
        sampler: Any = optuna.samplers.NSGAIISampler(seed=search.seed, population_size=max(2, min(50, num // 4)))
    else:  # the first trials are drawn at random
        sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=max(2, min(10, num // 3)))
    front = search.objective == "front"
    study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"] if front else ["maximize"])
    domains: dict[str, Any] = {key: _domain(one) for key, one in space.dimensions.items()}
    for first in range(1, num + 1, search.max_concurrent):
        asked = [study.ask(domains) for _ in range(min(search.max_concurrent, num + 1 - first))]
        batch = [Proposal(number, one.params, search.epochs) for number, one in enumerate(asked, first)]
        yield batch
        for one, proposal in zip(asked, batch, strict=True):
            best = ended[proposal.name].best
            if not best:
                study.tell(one, state=optuna.trial.TrialState.FAIL)
                continue
            depth = max(best, key=lambda name: best[name])
            cost = costs[key_of(make_candidate(space.params, decode(proposal.config)))][depth][search.cost]
            study.tell(one, [best[depth], cost] if front else best[depth])


def _domain(dimension: list[str] | dict[str, list]):
    """A dimension of the space as an Optuna distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, list):
        return CategoricalDistribution(dimension)
    kind, (low, high) = next(iter(dimension.items()))
    return IntDistribution(low, high) if kind == "int" else FloatDistribution(low, high, log=kind == "log")


def _populations(space: Space, ended: Mapping[str, Trial]) -> Iterator[list[Proposal]]:
    """Population based training (Jaderberg et al. 2017), all members at the same epoch, so the seed determines it."""
    search, rng = space.params.search, np.random.default_rng(space.params.search.seed)
    until = search.grace_epochs
    members = [Proposal(number, config, until) for number, config in enumerate(space.configs or [], 1)]
    while True:
        yield members
        alive = [one for one in members if ended[one.name].status == "done"]
        if not alive or until == search.epochs:
            return
        until = min(until + search.grace_epochs, search.epochs)
        ordered = sorted(alive, key=lambda one: max(ended[one.name].best.values()))
        num = min(math.ceil(len(alive) / 4), len(alive) // 2)
        weak, strong = ordered[:num], ordered[len(alive) - num :]
        members = []
        for one in alive:
            donor = strong[rng.integers(num)] if one in weak else one
            config = _changed(donor.config, space, rng) if one in weak else one.config
            members.append(Proposal(one.number, config, until, donor.name))


def _changed(config: Config, space: Space, rng: np.random.Generator) -> Config:
    """A config with every mutable value changed by a step or resampled, within its range."""
    changed = dict(config)
    for key in mutable(space):
        dimension, up = space.dimensions[key], int(rng.integers(2))
        if rng.random() < DRAWN_ANEW:
            changed[key] = draw_value(rng, dimension)
        elif isinstance(dimension, list):
            at = dimension.index(config[key]) + (-1, 1)[up]
            changed[key] = dimension[min(max(at, 0), len(dimension) - 1)]
        else:
            kind, (low, high) = next(iter(dimension.items()))
            value = min(max(config[key] * STEPS[up], low), high)
            changed[key] = round(value) if kind == "int" else value
    return changed


def make_scheduler(space: Space):
    """The scheduler that stops trials early: ASHA, on the best depth so far after equally many epochs; or None."""
    from ray.tune.schedulers import ASHAScheduler

    search = space.params.search
    if search.scheduler != "asha":
        return None
    return ASHAScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        max_t=search.epochs,
        grace_period=search.grace_epochs,
        reduction_factor=search.reduction,
    )


def tell_scheduler(scheduler: Any, trial_id: str, curve: list[dict[str, Any]]) -> None:
    """Report a trial's results from an earlier command, so that later trials are compared with it."""
    trial = SimpleNamespace(trial_id=trial_id)
    scheduler.on_trial_add(None, trial)
    for epoch in range(1, len(curve) + 1):
        scheduler.on_trial_result(None, trial, {"epoch": epoch, METRIC: best_so_far(curve[:epoch])[METRIC]})
