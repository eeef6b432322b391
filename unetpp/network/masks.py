"""The meaning of the values in a mask, for each of the three tasks, and of the logits.

- binary (one class): 0 background, 1 foreground; the sigmoid of the logit is the probability of the foreground.
- classes (several, exactly one per pixel): 0 background, 1 ... K-1; a softmax over K channels. Without `background`
  class 0 is a class like the others.
- labels (several, any number per pixel; `multilabel`): bit k is label k + 1 of K, so that the mask of all labels is a
  single plane that can be flipped and cropped like any other; a sigmoid for each of K channels.

In all three, IGNORE is an unlabelled pixel: it is left out of losses and metrics.

A network for instances has two more channels after those of the mask, each with a sigmoid: the probability that a pixel
lies on the boundary of an object, and its distance from the boundary (`unetpp.data.targets.make_targets`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255
MASK, FOR_INSTANCES = ("mask",), ("mask", "boundary", "distance")  # the two possible `targets` of a `NestedUNet`
MAX_LABELS = 7  # all labels at a pixel give 127; with an eighth label they would give 255, which is IGNORE


def first_class(num_classes: int, multilabel: bool = False, background: bool = True) -> int:
    """The channel of the first class that counts in means: 1 where channel 0 is the background's, else 0."""
    return int(num_classes > 1 and not multilabel and background)


def find_values(mask: np.ndarray) -> np.ndarray:
    """The values that occur in a mask of uint8, sorted."""
    flat = mask.reshape(-1)
    present = np.zeros(256, bool)
    for start in range(0, len(flat), 2**20):  # bincount makes eight bytes of each
        present |= np.bincount(flat[start : start + 2**20], minlength=256) > 0
    return np.flatnonzero(present)


def find_classes(
    mask: np.ndarray, multilabel: bool = False, background: bool = True
) -> Iterator[tuple[int, np.ndarray]]:
    """Each foreground class or label that occurs in a mask (H, W) uint8, with its pixels.

    Numbers begin with 1; without `background`, with class 0.

    Yields:
        the number, and the pixels (H, W) bool. Pixels of labels may overlap; IGNORE pixels belong to none.
    """
    present = find_values(mask)
    present = present[(present >= int(background)) & (present != IGNORE)]
    if not multilabel:
        for value in present:
            yield int(value), mask == value
        return
    for bit in range(MAX_LABELS):
        if (present >> bit & 1).any():
            yield bit + 1, (mask >> bit & 1 == 1) & (mask != IGNORE)


# torch is imported where it is used: params are checked against MAX_LABELS in processes that do not need torch.
def to_planes(mask: "Tensor", num_classes: int, multilabel: bool = False) -> "tuple[Tensor, Tensor]":
    """A mask as one plane per channel of the logits.

    Args:
        mask: (N, H, W) integers.

    Returns:
        truth (N, num_classes, H, W) bool, and valid (N, 1, H, W) bool: False where the mask is IGNORE.
    """
    import torch

    valid = (mask != IGNORE).unsqueeze(1)  # (N, 1, H, W)
    known = mask.unsqueeze(1) * valid  # (N, 1, H, W)
    if num_classes == 1 and not multilabel:
        return known > 0, valid
    numbers = torch.arange(num_classes, device=mask.device).view(1, -1, 1, 1)
    if multilabel:
        return (known.long() >> numbers) % 2 == 1, valid
    return (known == numbers) & valid, valid


def to_probs(logits: "Tensor", num_classes: int, multilabel: bool = False) -> "Tensor":
    """Probabilities of each channel, (N, K, H, W): the first `num_classes` are the mask's."""
    import torch

    if num_classes == 1 or multilabel:
        return logits.sigmoid()
    if logits.shape[1] == num_classes:
        return logits.softmax(dim=1)
    return torch.cat([logits[:, :num_classes].softmax(dim=1), logits[:, num_classes:].sigmoid()], dim=1)


def to_mask(probs: "Tensor", num_classes: int, multilabel: bool = False) -> "Tensor":
    """The mask (N, H, W) uint8 of probabilities (N, K, H, W), of which the first `num_classes` are the mask's.

    A probability of at least one half is foreground, or a label; of several classes the most probable one is chosen.
    """
    import torch

    probs = probs[:, :num_classes]
    if multilabel:
        bits = 2 ** torch.arange(probs.shape[1], device=probs.device).view(1, -1, 1, 1)
        return ((probs >= 0.5) * bits).sum(dim=1).to(torch.uint8)
    if probs.shape[1] == 1:
        return (probs[:, 0] >= 0.5).to(torch.uint8)
    return probs.argmax(dim=1).to(torch.uint8)
