"""Boundary and distance of objects, packed with a mask for the loss of a network for instances.

A mask and its targets are one plane of int32, so that all code that moves, stacks or splits masks treats both alike:
bits 0 to 7 are the mask, bit 8 is the boundary, bit 9 says that both targets are known, bits 16 to 30 are the distance.
"""

from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

BOUNDARY, KNOWN, DISTANCE = 8, 9, 16  # their first bits
FULL = 2**15 - 1  # a distance of 1
# Weights of the two losses next to the mask's: a plain sum. Other weights are not measured yet.
BOUNDARY_WEIGHT, DISTANCE_WEIGHT = 1.0, 1.0


class Targets(NamedTuple):
    """The parts that `join` packed, for a batch: mask (N, H, W), the others (N, 1, H, W) float32."""

    mask: Tensor
    boundary: Tensor
    distance: Tensor
    known: Tensor


def join(mask: np.ndarray, boundary: np.ndarray, distance: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Pack mask uint8, boundary and known bool, and distance float in [0, 1], all (H, W), into one int32 (H, W)."""
    joined = mask | boundary.astype(np.int32) << BOUNDARY | known.astype(np.int32) << KNOWN
    return joined | np.rint(distance * FULL).astype(np.int32) << DISTANCE


def part(joined: Tensor) -> Targets:
    """Unpack (N, H, W) int32 into its parts."""
    plane = joined.unsqueeze(1)
    bits = (plane >> BOUNDARY & 1, (plane >> DISTANCE) / FULL, plane >> KNOWN & 1)
    return Targets(mask_of(joined), *(one.float() for one in bits))


def mask_of(joined: Tensor) -> Tensor:
    """Only the mask; a mask without targets is returned unchanged."""
    return joined & 255


def targets_loss(logits: Tensor, targets: Tensor | Targets) -> Tensor:
    """(N,): the loss of the channels for boundary and distance, (N, 2, H, W), per image.

    The binary cross-entropy of both, as means over the known pixels; the minimum for the distance is above 0.
    """
    _, boundary, distance, known = targets if isinstance(targets, Targets) else part(targets)
    pixels = known.sum(dim=(1, 2, 3)).clamp(min=1)

    def entropy(channel: int, truth: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(logits[:, channel, None].float(), truth, reduction="none")
        return (each * known).sum(dim=(1, 2, 3)) / pixels

    return BOUNDARY_WEIGHT * entropy(0, boundary) + DISTANCE_WEIGHT * entropy(1, distance)
