"""How far a training is: what it yields, what a checkpoint holds, and all that it needs to go on from there."""

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Best:
    """The epoch that is kept, counted from 0; its val IoU, as `unetpp.training.choice.steady` sees it; its weights."""

    epoch: int = 0
    val_iou: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainState:
    """A training after an epoch, or inside of one; without arguments, one that has not begun.

    Attributes:
        epoch: epochs done.
        step: steps done of the next epoch; 0 between two epochs.
        history: a row an epoch.
        weights, optimizer, scaler: state_dicts; the last of fp16 alone.
        ema: state_dict of the averaged weights, where `train.ema` asks for them: these are validated and kept as best.
        accumulate: parts of a process's batch, which may have grown for want of memory.
        skipped: steps that were dropped.
        world: how many processes there were.
        sums, statistics: inside of an epoch, what each process knows of it alone: (world, 2) sums of losses and images,
            and (world, values) running statistics.
        stopped: the training was asked to stop here.
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
        """Where it is inside of an epoch, in words; nothing between two."""
        return f" in epoch {self.epoch + 1}, step {self.step}" if self.step else ""

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint's file holds: plain values and tensors."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {key: value for key, value in found.items() if value is not None} | {"best": dict(vars(self.best))}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "TrainState":
        """A state of a checkpoint's file, also of one that holds fewer values or others beside them."""
        known = {one.name: found[one.name] for one in fields(cls) if one.name in found}
        return cls(**known | {"best": Best(**found.get("best", {}))})

    def is_finished(self, num_epochs: int) -> bool:
        return self.epoch == num_epochs and not self.step
