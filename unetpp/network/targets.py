"""Boundary and distance of objects, as they travel with a mask to the loss of a network for instances.

A mask and its targets are one plane of int32, so that whatever moves, stacks or divides masks does the same to both:
bits 0 to 7 are the mask, bit 8 the boundary, bit 9 says that both targets are known, bits 16 to 30 are the distance.
"""

from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

BOUNDARY, KNOWN, DISTANCE = 8, 9, 16  # their first bits
FULL = 2**15 - 1  # a distance of 1
# Of the two beside the mask's loss: a plain sum. Other weights were not measured yet.
BOUNDARY_WEIGHT, DISTANCE_WEIGHT = 1.0, 1.0


class Targets(NamedTuple):
    """What `join` joined, of a batch: mask (N, H, W), the others (N, 1, H, W) float32."""

    mask: Tensor
    boundary: Tensor
    distance: Tensor
    known: Tensor


def join(mask: np.ndarray, boundary: np.ndarray, distance: np.ndarray, known: np.ndarray) -> np.ndarray:
    """One int32 (H, W) of a mask uint8, boundary and known bool, and distance float in [0, 1]."""
    joined = mask | boundary.astype(np.int32) << BOUNDARY | known.astype(np.int32) << KNOWN
    return joined | np.rint(distance * FULL).astype(np.int32) << DISTANCE


def part(joined: Tensor) -> Targets:
    """The parts of (N, H, W) int32."""
    plane = joined.unsqueeze(1)
    bits = (plane >> BOUNDARY & 1, (plane >> DISTANCE) / FULL, plane >> KNOWN & 1)
    return Targets(mask_of(joined), *(one.float() for one in bits))


def mask_of(joined: Tensor) -> Tensor:
    """The mask alone; a mask without targets is that itself."""
    return joined & 255


def targets_loss(logits: Tensor, targets: Tensor | Targets) -> Tensor:
    """(N,): what the channels for boundary and distance, (N, 2, H, W), add to the loss of each image.

    The binary cross-entropy of both, of which the distance's has its least value above 0; means over the known pixels.
    """
    _, boundary, distance, known = targets if isinstance(targets, Targets) else part(targets)
    pixels = known.sum(dim=(1, 2, 3)).clamp(min=1)

    def entropy(channel: int, truth: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(logits[:, channel, None].float(), truth, reduction="none")
        return (each * known).sum(dim=(1, 2, 3)) / pixels

    return BOUNDARY_WEIGHT * entropy(0, boundary) + DISTANCE_WEIGHT * entropy(1, distance)
