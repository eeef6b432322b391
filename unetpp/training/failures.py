"""What goes wrong in one of several processes, made known to all of them in the very step.

A process that gives up would leave the others waiting for its gradients until a time-out. So it takes part in the
exchange once more, with gradients that are no numbers: all see in the same step that something is wrong, ask one
another what, and do the same. A step without a failure costs nothing.
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
from unetpp.training.batch_norm import SyncBatchNorm


@dataclass(frozen=True)
class Failure:
    """What went wrong in a process; `parts`: memory was short, and it would try the step again in so many."""

    text: str
    parts: int | None = None


class FailedError(UserError):
    """A failure of one process, raised by all. `rank`: whose; `step`: its number, -1 where it was in none."""

    def __init__(self, failure: Failure, rank: int, step: int = -1):
        super().__init__(failure.text)
        self.rank, self.step = rank, step


def describe(error: Exception) -> Failure:
    """A user's mistake in its own words, a bug with its traceback."""
    return Failure(str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)).strip())


def gather_failures(own: Failure | None, world: int) -> list[Failure | None]:
    """The failures of all processes, by rank; each must call this."""
    if world == 1:
        return [own]
    found: list[Any] = [None] * world
    dist.all_gather_object(found, own)
    return found


def raise_any(own: Failure | None, world: int) -> None:
    """Raise the first failure of any process in each of them.

    Raises:
        FailedError
    """
    for rank, failure in enumerate(gather_failures(own, world)):
        if failure:
            raise FailedError(failure, rank)


class Exchange:
    """The exchange of gradients in a step of several processes, in which also a process takes part that failed.

    Args:
        network: its last backward pass of a step exchanges the gradients.

    Attributes:
        in_passes: whether its layers exchange sums in every pass, so that one which was begun cannot be made good.
    """

    def __init__(self, network: DistributedDataParallel):
        self._network = network
        self._parameters = [one for one in network.parameters() if one.requires_grad]
        self.in_passes = any(isinstance(one, SyncBatchNorm | nn.SyncBatchNorm) for one in network.modules())
        self.begin()

    def begin(self) -> None:
        """To be called before the first part of a batch."""
        self._passes = 0
        self._before: list[tuple[Tensor | None, int]] = []

    def begin_part(self, last: bool) -> None:
        """To be called before each pass; gradients are exchanged in the last one."""
        self._passes += 1
        if last:
            self._before = [(one.grad, -1 if one.grad is None else one.grad._version) for one in self._parameters]

    def give_nothing(self, parts: int) -> None:
        """Give the others gradients that are no numbers, instead of those that are missing.

        Args:
            parts: passes of each process in this step.

        Raises:
            RuntimeError: it is too late for that.
        """
        rest = self._missing()
        some = len(rest) < len(self._parameters)
        if not rest or (self._passes and self.in_passes) or (some and self._network.static_graph):
            raise RuntimeError("too late: the others know of this pass already")
        if some:
            (torch.stack([one.sum() for one in rest]).sum() * torch.nan).backward()
            return
        passes = parts if self.in_passes else 1
        for number in range(1, passes + 1):
            with nullcontext() if number == passes else self._network.no_sync():
                logits = self._network(blank_images(self._network))
                (torch.stack([one.float().sum() for one in logits]).sum() * torch.nan).backward()

    def _missing(self) -> list[nn.Parameter]:
        """The parameters whose gradient was not touched since the last part began."""
        if not self._before:
            return self._parameters
        return [
            one
            for one, (before, version) in zip(self._parameters, self._before, strict=True)
            if one.grad is before and (before is None or before._version == version)
        ]


def blank_images(network: nn.Module) -> Tensor:
    """Small black images (2, C, H, W) that a NestedUNet, or what wraps one, takes."""
    bare: Any = network.module if isinstance(network, DistributedDataParallel) else network
    side = 2 ** len(bare.widths)
    device = next(network.parameters()).device
    return torch.zeros(2, bare.in_channels, side, side, device=device).contiguous(memory_format=torch.channels_last)
