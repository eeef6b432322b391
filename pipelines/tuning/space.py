"""The space of a search: widths, other values of params, and the candidates made from them.

In Ray Tune, a candidate is a config: a flat dict of "widths" and other dotted keys of params. Choices are stored in it
as JSON text, since Ray Tune and Optuna accept texts and numbers as choices, not lists; numbers of a range as they are.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.core.params import Params, override
from unetpp.errors import UserError

TRAINED = ("model", "train", "augment")  # the sections that a trial reads
OWN = {  # keys that search sets for its trials
    "train.epochs": "search.epochs",
    "train.num_workers": "search.num_workers",
    "train.cpus_per_worker": "search.cpus_per_worker",
    "train.use_gpu": "train.use_gpu",
    "train.max_failures": "train.max_failures",
    "train.timeout_s": "train.timeout_s",
    "train.init": "train.init",
}
# What a training run can change between two epochs: PBT copies everything else with the weights.
MUTABLE = ("train.learning_rate", "train.weight_decay", "train.momentum", "train.batch_size", "train.head_weights")
MUTABLE += ("train.encoder_lr",)
MUTABLE += ("train.class_weights", "train.foreground_crops", "model.dropout", "augment.")
MOST_CHECKED = 2000  # combinations of a grid that are checked

Config = dict[str, Any]
Widths = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """One candidate: its searched values by dotted key, "widths" among them, and the params of its short run."""

    values: dict[str, Any]
    params: Params

    @property
    def widths(self) -> Widths:
        return tuple(self.values["widths"])


@dataclass(frozen=True)
class Space:
    """The dimensions by name: a list of choices as JSON text, or a range {uniform | log | int: [low, high]}."""

    params: Params
    dimensions: dict[str, list[str] | dict[str, list]]

    @property
    def widths(self) -> list[Widths]:
        return [tuple(json.loads(one)) for one in self.dimensions["widths"]]

    @property
    def is_single(self) -> bool:
        return all(isinstance(one, list) and len(one) == 1 for one in self.dimensions.values())

    @property
    def searched(self) -> list[str]:
        """The dotted keys other than widths."""
        return [key for key in self.dimensions if key != "widths"]

    def without(self, left_out: list[Widths]) -> "Space":
        """The space without some of its widths."""
        kept = [json.dumps(list(widths)) for widths in self.widths if widths not in left_out]
        return Space(self.params, self.dimensions | {"widths": kept})

    def grid(self) -> Iterator[Config]:
        """Every combination of the choices."""
        return (dict(zip(self.dimensions, values, strict=True)) for values in itertools.product(*self._choices()))

    def _choices(self) -> list[list[str]]:
        return [one if isinstance(one, list) else [] for one in self.dimensions.values()]

    def draw(self, num: int, seed: int) -> list[Config]:
        """Different configs at random, from only the seed; fewer than `num` if there are no more."""
        rng = np.random.default_rng(seed)
        found: dict[str, Config] = {}
        for _ in range(100 * num):
            config = {key: draw_value(rng, one) for key, one in self.dimensions.items()}
            found.setdefault(json.dumps(config), config)
            if len(found) == num:
                break
        return list(found.values())

    @cached_property
    def configs(self) -> list[Config] | None:
        """The trials of the searchers grid and random; None if the searcher is adaptive."""
        search = self.params.search
        if search.searcher == "grid":
            return list(self.grid())
        return self.draw(search.num_trials or 1, search.seed) if search.searcher == "random" else None

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Those of `configs`; if the searcher is adaptive, as many drawn from the seed."""
        search = self.params.search
        configs = self.draw(search.num_trials or 1, search.seed) if self.configs is None else self.configs
        return [make_candidate(self.params, decode(one)) for one in configs]

    @property
    def num_trials(self) -> int:
        return (self.params.search.num_trials or 1) if self.configs is None else len(self.configs)

    @cached_property
    def networks(self) -> list[Candidate]:
        """One for each network with different costs: all widths with every choice of section model."""
        ends = {
            key: one if isinstance(one, list) else next(iter(one.values()))[:1]
            for key, one in self.dimensions.items()
            if key == "widths" or key.startswith("model.")
        }
        configs = [dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values())]
        return [make_candidate(self.params, decode(one)) for one in configs]


def decode(config: Config) -> Config:
    """A config with its values as in params.yaml."""
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in config.items()}


def make_candidate(params: Params, values: Config) -> Candidate:
    """The candidate of these values, as in params.yaml, with the short training run of section search."""
    params = override(params, {key: value for key, value in values.items() if key != "widths"})
    search, train = params.search, params.train
    short = {
        "epochs": search.epochs,
        "freeze_encoder_epochs": train.freeze_encoder_epochs * search.epochs // train.epochs,  # the same share
        "num_workers": search.num_workers,
        "cpus_per_worker": search.cpus_per_worker,
        "init": None,
        "checkpoint_every_steps": None,  # trials are short, and compared at the ends of epochs
    }
    return Candidate(values, params.model_copy(update={"train": params.train.model_copy(update=short)}))


def read_space(params: Params) -> Space:
    """The space that section search declares, with all values validated.

    Raises:
        UserError: a key that does not exist or cannot be searched, an illegal value, a searcher that cannot draw from
            the space.
    """
    search = params.search
    dimensions: dict[str, list[str] | dict[str, list]] = {"widths": []}
    for key, values in search.space.items():
        if isinstance(values, list):
            legal = [_legal(params, key, value) for value in values]
            dimensions[key] = list(dict.fromkeys(json.dumps(value) for value in legal))
        else:
            for end in next(iter(values.values())):
                _legal(params, key, end)
            dimensions[key] = values
            if search.searcher == "grid":
                raise UserError(
                    f"search.space.{key}: found the range {values}, and search.searcher is grid, which needs a list of "
                    "choices: give one, or set search.searcher=random and search.num_trials"
                )
    dimensions["widths"] = [json.dumps(list(widths)) for widths in _widths(params, dimensions)]
    space = Space(params, dimensions)
    if search.scheduler == "pbt" and not mutable(space):
        raise UserError(
            "search.scheduler is pbt, which changes values while trials train, and search.space has none that can "
            f"change so: add one of {', '.join(MUTABLE)}..."
        )
    if search.searcher == "grid":
        for config in itertools.islice(space.grid(), MOST_CHECKED):
            _legal_together(params, config)
    return space


def mutable(space: Space) -> list[str]:
    """The searched keys that can change during a trial."""
    return [key for key in space.searched if key.startswith(MUTABLE)]


def _widths(params: Params, dimensions: dict) -> list[Widths]:
    """The candidates, without duplicates; for networks with one head, each depth of a grown one is a candidate."""
    search = params.search
    grown = search.grow.candidates() if search.grow else []
    supervised = dimensions.get("model.deep_supervision", [json.dumps(params.model.deep_supervision)])
    if "false" in supervised:
        grown = [widths[: depth + 1] for widths in grown for depth in range(1, len(widths))]
    return list(dict.fromkeys([*search.widths, *grown]))


def _legal(params: Params, key: str, value: Any) -> Any:
    """The value in the form of params."""
    try:
        changed = override(params, {key: value})
    except UserError as error:
        raise UserError(f"search.space.{key}: {error}") from None
    section = key.partition(".")[0]
    if section not in TRAINED or "." not in key:
        raise UserError(
            f"search.space.{key}: a trial trains on the prepared data; expected a key of the sections "
            f"{', '.join(TRAINED)}, such as train.learning_rate"
        )
    if key in OWN:
        raise UserError(f"search.space.{key}: must be the same for all trials; set {OWN[key]}")
    found: Any = changed.model_dump(mode="json", by_alias=True)
    for name in key.split("."):
        found = found[name]
    return found


def _legal_together(params: Params, config: Config) -> None:
    values = {key: value for key, value in decode(config).items() if key != "widths"}
    try:
        override(params, values)
    except UserError as error:
        raise UserError(f"search.space: the values {values} are not legal together: {error}") from None


def draw_value(rng: np.random.Generator, dimension: list[str] | dict[str, list]) -> str | float | int:
    """A value of a dimension at random."""
    if isinstance(dimension, list):
        return dimension[rng.integers(len(dimension))]
    kind, (low, high) = next(iter(dimension.items()))
    if kind == "int":
        return int(rng.integers(low, high + 1))
    if kind == "log":
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return float(rng.uniform(low, high))
