"""The state of a training run: what it yields, what a checkpoint contains, and all that is needed to resume."""

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Best:
    """The kept epoch, counted from 0; its val IoU as smoothed by `unetpp.training.choice.steady`; its weights."""

    epoch: int = 0
    val_iou: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainState:
    """A training run after an epoch, or inside one; without arguments, one that has not begun.

    Attributes:
        epoch: completed epochs.
        step: completed steps of the next epoch; 0 between two epochs.
        history: one row per epoch.
        weights, optimizer, scaler: state_dicts; the scaler is for fp16 only.
        ema: state_dict of the averaged weights, if `train.ema` is set: these are validated, and kept as the best.
        accumulate: parts into which a process splits its batch; may have grown when memory ran out.
        skipped: number of dropped steps.
        world: number of processes.
        sums, statistics: inside an epoch, the values of each process: (world, 2) sums of losses and images, and
            (world, values) running statistics.
        stopped: whether the training run was asked to stop here.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    weights: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    ema: dict[str, Tensor] | None = None
    accumulate: int | None = None
    skipped: int = 0
    world: int | None = None
    sums: Tensor | None = None
    statistics: Tensor | None = None
    stopped: bool = False

    @property
    def place(self) -> str:
        """The place inside an epoch, in words; empty between two epochs."""
        return f" in epoch {self.epoch + 1}, step {self.step}" if self.step else ""

    def to_dict(self) -> dict[str, Any]:
        """The contents of a checkpoint file: plain values and tensors."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {key: value for key, value in found.items() if value is not None} | {"best": dict(vars(self.best))}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "TrainState":
        """The state in a checkpoint file; missing values and unknown ones are tolerated."""
        known = {one.name: found[one.name] for one in fields(cls) if one.name in found}
        return cls(**known | {"best": Best(**found.get("best", {}))})

    def is_finished(self, num_epochs: int) -> bool:
        return self.epoch == num_epochs and not self.step
