"""Section search of params.yaml, and what a search hands to training."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipelines.core.sections.section import NonNegativeInt, PositiveFloat, PositiveInt, Section, Widths


class Grow(Section):
    max_depth: Annotated[int, Field(ge=1, le=6)]
    base: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    growth: Annotated[tuple[Annotated[float, Field(ge=1, le=4)], ...], Field(min_length=1)]

    def candidates(self) -> list[tuple[int, ...]]:
        """base * growth^level for each base and growth, as deep as max_depth."""
        levels = range(self.max_depth + 1)
        return [tuple(round(base * growth**i) for i in levels) for base in self.base for growth in self.growth]


class Budget(Section):
    latency_ms: PositiveFloat | None
    macs: PositiveFloat | None
    parameters: PositiveFloat | None
    memory_mib: PositiveFloat | None


def _check_choices(value):
    """Check for a list of choices or one range {uniform | log | int: [low, high]}; the error is one sentence."""
    if isinstance(value, list | tuple) and value:
        return value
    if isinstance(value, dict) and len(value) == 1 and set(value) <= {"uniform", "log", "int"}:
        kind, ends = next(iter(value.items()))
        try:
            low, high = (int(str(end)) if kind == "int" else float(end) for end in ends)
        except (TypeError, ValueError):
            raise ValueError(f"expected {{{kind}: [low, high]}} with two numbers, found {value!r}") from None
        if not low < high or (kind == "log" and low <= 0):
            raise ValueError(f"a range goes from a lower to a higher number, of log from above 0, found {value!r}")
        return {kind: [low, high]}
    raise ValueError(f"expected a list of choices or one of {{uniform | log | int: [low, high]}}, found {value!r}")


class Search(Section):
    widths: tuple[Widths, ...]
    epochs: PositiveInt
    max_concurrent: PositiveInt
    num_workers: PositiveInt
    cpus_per_worker: PositiveInt
    grow: Grow | None
    space: dict[str, Annotated[list[Any] | dict[str, Any], BeforeValidator(_check_choices)]]
    searcher: Literal["grid", "random", "tpe", "nsga2"]
    num_trials: PositiveInt | None
    scheduler: Literal["none", "asha", "pbt"]
    grace_epochs: PositiveInt
    reduction: Annotated[float, Field(ge=1.5, le=16)]
    objective: Literal["accuracy", "front"]
    tolerance_iou: Annotated[float, Field(ge=0, le=1)]
    cost: Literal["macs", "parameters", "latency_ms", "memory_mib"]
    budget: Budget
    size_px: PositiveInt | None
    max_hours: PositiveFloat | None
    seed: NonNegativeInt

    @model_validator(mode="after")
    def _not_empty(self):
        if not self.widths and self.grow is None:
            raise ValueError(
                "the space is empty: search.widths has no list and search.grow is null; expected widths such as "
                "[[8, 16, 32]], or search.grow"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self):
        if self.searcher != "grid" and self.num_trials is None:
            raise ValueError(
                f"search.searcher is {self.searcher} and search.num_trials is null: say how many trials it draws"
            )
        if self.grace_epochs > self.epochs:
            raise ValueError(
                f"search.grace_epochs is {self.grace_epochs} and search.epochs is {self.epochs}: no trial would be "
                "compared before its end"
            )
        if self.searcher == "nsga2" and self.objective != "front":
            raise ValueError("search.searcher nsga2 looks for a front of accuracy and cost: set search.objective=front")
        if self.scheduler == "pbt" and (self.searcher not in ("grid", "random") or self.num_workers > 1):
            raise ValueError(
                "search.scheduler pbt changes the trials itself and copies weights between processes of one machine "
                "each: set search.searcher to grid or random, and search.num_workers to 1"
            )
        if self.scheduler == "asha" and self.searcher in ("tpe", "nsga2") and self.objective == "front":
            raise ValueError(
                "search.scheduler asha compares trials by one number and the searcher looks for a front of two: set "
                "search.scheduler=none, or search.objective=accuracy"
            )
        return self

    @property
    def deepest(self) -> int:
        """The depth of the deepest candidate."""
        grown = self.grow.max_depth if self.grow else 0
        return max([grown, *(len(widths) - 1 for widths in self.widths)])


class Origin(Section):
    """The model whose weights training starts from: what `train.init` asked for, what that was, and its checksum."""

    asked: str
    uri: str  # models:/NAME/VERSION, or the folder
    sha256: str


class Architecture(Section):
    """architecture.yaml, in which search hands its choice to train; the depth is `len(widths) - 1`.

    `params` are values of params.yaml by dotted key that were searched too; `init` is a file of weights beside it,
    `init_sha256` its sum, and `init_origin` the model that they are from, if they are not those of a trial.
    """

    widths: Widths
    params: dict[str, Any] = Field(default_factory=dict)
    init: str | None = None
    init_sha256: str | None = None
    init_origin: Origin | None = None
