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
        for one in self._parameters:
            one.register_post_accumulate_grad_hook(self._note)
        self.in_passes = any(isinstance(one, nn.SyncBatchNorm) for one in network.modules())
        self.begin()

    def begin(self) -> None:
        """To be called before the first part of a batch."""
        self._passes, self._is_last = 0, False
        self._given: set[Tensor] = set()  # parameters whose gradient the last pass has made

    def begin_part(self, last: bool) -> None:
        """To be called before each pass; gradients are exchanged in the last one."""
        self._passes, self._is_last = self._passes + 1, last

    def _note(self, parameter: Tensor) -> None:
        if self._is_last:
            self._given.add(parameter)

    def give_nothing(self, parts: int) -> None:
        """Give the others gradients that are no numbers, instead of those that are missing.

        Args:
            parts: passes of each process in this step.

        Raises:
            RuntimeError: it is too late for that.
        """
        rest = [one for one in self._parameters if one not in self._given]
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


def blank_images(network: nn.Module) -> Tensor:
    """Small black images (2, C, H, W) that a NestedUNet, or what wraps one, takes."""
    bare: Any = network.module if isinstance(network, DistributedDataParallel) else network
    side = 2 ** len(bare.widths)
    device = next(network.parameters()).device
    return torch.zeros(2, bare.in_channels, side, side, device=device).contiguous(memory_format=torch.channels_last)
