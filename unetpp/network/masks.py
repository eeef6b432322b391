"""What the numbers in a mask say, for each of the three tasks, and how logits answer them.

- binary (one class): 0 background, 1 foreground; the logit's sigmoid is the foreground's probability.
- classes (several, one at a pixel): 0 background, 1 ... K-1; a softmax over K channels. Without `background` class 0 is
  one as the others are, and counts wherever they do.
- labels (several, any of them at a pixel; `multilabel`): bit k is label k + 1 of K, so that a mask of all labels is
  one plane that flips and crops as any other; a sigmoid for each of K channels.

IGNORE, in all three, is an unlabelled pixel: it counts in no loss and in no metric.

A network for instances gives two channels more, after those of the mask, whatever the classes: how likely a pixel lies
on an object's boundary, and how far from it (`unetpp.data.instances.make_targets`), each by a sigmoid.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255
MASK, FOR_INSTANCES = ("mask",), ("mask", "boundary", "distance")  # what a head gives (`NestedUNet`): one of the two
MAX_LABELS = 7  # all of them at a pixel are 127; with an eighth they could be IGNORE


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
    """What a mask (H, W) uint8 holds: each foreground class or label that occurs in it, with its place.

    They are counted from 1; without `background` class 0 is one of them.

    Yields:
        number, and (H, W) bool. Places of labels may overlap; IGNORE is in none.
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


# torch is imported where it is used: params are checked against MAX_LABELS in processes that need no torch.
def to_planes(mask: "Tensor", num_classes: int, multilabel: bool = False) -> "tuple[Tensor, Tensor]":
    """A mask as one plane a channel of the logits.

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
    """(N, K, H, W) probabilities, of which the first `num_classes` are the mask's, to the (N, H, W) uint8 mask.

    At least one half is foreground, or a label; of several classes it is the likeliest.
    """
    import torch

    probs = probs[:, :num_classes]
    if multilabel:
        bits = 2 ** torch.arange(probs.shape[1], device=probs.device).view(1, -1, 1, 1)
        return ((probs >= 0.5) * bits).sum(dim=1).to(torch.uint8)
    if probs.shape[1] == 1:
        return (probs[:, 0] >= 0.5).to(torch.uint8)
    return probs.argmax(dim=1).to(torch.uint8)
