"""Tell all processes about the failure of one of them, in the same step.

If a process just stopped, the others would wait for its gradients until a time-out. So it takes part in the exchange
once more, with NaN gradients: in the same step all processes see that something failed, ask each other what, and react
in the same way. A step without a failure costs nothing.
"""

import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unetpp.errors import UserError


@dataclass(frozen=True)
class Failure:
    """What went wrong in a process; `parts`: out of memory, and it would retry the step in this many parts."""

    text: str
    parts: int | None = None


class FailedError(UserError):
    """A failure of the process `rank`, raised by all processes; `step` is -1 if it happened outside of a step."""

    def __init__(self, failure: Failure, rank: int, step: int = -1):
        super().__init__(failure.text)
        self.rank, self.step = rank, step


def describe(error: Exception) -> Failure:
    """The failure for an exception: a user's mistake with its message, a bug with its traceback."""
    return Failure(str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)).strip())


def gather_failures(own: Failure | None, world: int) -> list[Failure | None]:
    """The failures of all processes, by rank; every process must call this."""
    if world == 1:
        return [own]
    found: list[Any] = [None] * world
    dist.all_gather_object(found, own)
    return found


def raise_any(own: Failure | None, world: int) -> None:
    """Raise the first failure of any process in all processes; every process must call this.

    Raises:
        FailedError: a process failed.
    """
    for rank, failure in enumerate(gather_failures(own, world)):
        if failure:
            raise FailedError(failure, rank)


class Exchange:
    """The exchange of gradients between processes, in which a failed process takes part as well.

    Args:
        network: it exchanges gradients in the last backward pass of a step.

    Attributes:
        in_passes: whether its layers exchange sums in every pass; a pass that was begun can then not be repeated.
    """

    def __init__(self, network: DistributedDataParallel):
        self._network = network
        self._parameters = [one for one in network.parameters() if one.requires_grad]
        for one in self._parameters:
            one.register_post_accumulate_grad_hook(self._note)
        self.in_passes = any(isinstance(one, nn.SyncBatchNorm) for one in network.modules())
        self.begin()

    def begin(self) -> None:
        """Call this before the first part of a batch."""
        self._passes, self._is_last = 0, False
        self._given: set[Tensor] = set()  # parameters whose gradient the last pass has computed

    def begin_part(self, last: bool) -> None:
        """Call this before each pass; gradients are exchanged in the last one."""
        self._passes, self._is_last = self._passes + 1, last

    def _note(self, parameter: Tensor) -> None:
        if self._is_last:
            self._given.add(parameter)

    def give_nothing(self, parts: int) -> None:
        """Exchange NaN gradients instead of the missing ones.

        Args:
            parts: number of passes of each process in this step.

        Raises:
            RuntimeError: too late, the exchange of this pass has already begun.
        """
        rest = [one for one in self._parameters if one not in self._given]
        some = len(rest) < len(self._parameters)
        if not rest or (self._passes and self.in_passes) or (some and self._network.static_graph):
            raise RuntimeError("too late: this pass already exchanges gradients with the other processes")
        if some:
            (torch.stack([one.sum() for one in rest]).sum() * torch.nan).backward()
            return
        passes = parts if self.in_passes else 1
        for number in range(1, passes + 1):
            with nullcontext() if number == passes else self._network.no_sync():
                logits = self._network(blank_images(self._network))
                (torch.stack([one.float().sum() for one in logits]).sum() * torch.nan).backward()


def blank_images(network: nn.Module) -> Tensor:
    """Small black images (2, C, H, W) for a NestedUNet or a wrapper of one."""
    bare: Any = network.module if isinstance(network, DistributedDataParallel) else network
    side = 2 ** len(bare.widths)
    device = next(network.parameters()).device
    return torch.zeros(2, bare.in_channels, side, side, device=device).contiguous(memory_format=torch.channels_last)
