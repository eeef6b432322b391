"""The moving average of a network's weights."""

import copy

import torch
from torch import Tensor

from unetpp.network.model import NestedUNet


class Ema:
    """The exponential moving average of a network's weights over optimizer steps, as a network of its own.

    Its decay grows from 0.1 to the one asked for, so that a short training does not remember its first weights.
    The statistics of batch norm are not averaged: those of averaged weights are others than the average of those of
    the weights, as a network is not linear. `unetpp.training.batch_norm.recompute_statistics` finds them.

    Args:
        network: averaged from how it is now on.
        decay: the share of the old average that a step keeps, below 1.

    Attributes:
        network: the average, on the same device.
    """

    def __init__(self, network: NestedUNet, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self._own: list[Tensor] = list(self.network.parameters())
        self._others: list[Tensor] = list(network.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that optimizer step `step` (counted from 0) has left in the network."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for own, other in zip(self._own, self._others, strict=True):
            own.lerp_(other, 1 - decay)
