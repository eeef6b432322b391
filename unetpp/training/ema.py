"""The moving average of a network's weights."""

import copy

import torch
from torch import Tensor

from unetpp.network.model import NestedUNet


class Ema:
    """The exponential moving average of a network's weights over optimizer steps, as a separate network.

    The decay grows from 0.1 to `decay`, so that a short training run does not remember its first weights. Batch norm
    statistics are not averaged: a network is not linear, so averaged weights need their own statistics, which
    `unetpp.training.batch_norm.recompute_statistics` computes.

    Args:
        network: the network to average, beginning with its present weights.
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
        """Add the weights after optimizer step `step` (counted from 0) to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for own, other in zip(self._own, self._others, strict=True):
            own.lerp_(other, 1 - decay)
