"""The moving average of a network's weights, and statistics of batch norm that belong to it."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# As many images as tell the statistics of batch norm to a per cent (Wu and Johnson 2021, section 3).
STATISTICS_IMAGES = 1024


class Ema:
    """The exponential moving average of a network's weights over optimizer steps, as a network of its own.

    Its decay grows from 0.1 to the one asked for, so that a short training does not remember its first weights.
    The statistics of batch norm are not averaged: those of averaged weights are others than the average of
    those of the weights, as a network is not linear. `recompute_statistics` finds them.

    Args:
        network: averaged from how it is now on.
        decay: the share of the old average that a step keeps, below 1.

    Attributes:
        network: the average, on the same device.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self._own, self._others = list(self.network.parameters()), list(network.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that optimizer step `step` (counted from 0) has left in the network."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._own, self._others, 1 - decay)  # pyright: ignore[reportPrivateUsage]


def find_batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The layers of a network that keep running statistics."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def recompute_statistics(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, dtype: torch.dtype
) -> None:
    """Make the running statistics of batch norm the means over these batches, under the weights as they are.

    Dropout rests, as when the network is used. A function of weights and batches alone: nothing to save or lose.
    """
    network.eval()
    for norm in find_batch_norms(network):
        norm.reset_running_stats()
        norm.train()
    for image, _ in batches:
        image = image.to(device, non_blocking=True, memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            network(image)
    network.eval()
