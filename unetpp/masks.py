"""What the numbers in a mask say, for each of the three tasks, and how logits answer them.

- binary (one class): 0 background, 1 foreground; the logit's sigmoid is the foreground's probability.
- classes (several, one at a pixel): 0 background, 1 ... K-1; a softmax over K channels.
- labels (several, any of them at a pixel; `multilabel`): bit k is label k + 1 of K, so that a mask of all labels is
  one plane that flips and crops as any other; a sigmoid for each of K channels.

IGNORE, in all three, is a pixel that nobody annotated: it counts in no loss and in no metric.
"""

import torch
from torch import Tensor

IGNORE = 255
MAX_LABELS = 7  # all of them at a pixel are 127; with an eighth they could be IGNORE


def to_planes(mask: Tensor, num_classes: int, multilabel: bool = False) -> tuple[Tensor, Tensor]:
    """A mask as one plane a channel of the logits.

    Args:
        mask: (N, H, W) integers.

    Returns:
        truth (N, num_classes, H, W) bool, and valid (N, 1, H, W) bool: False where the mask is IGNORE.
    """
    valid = (mask != IGNORE).unsqueeze(1)  # (N, 1, H, W)
    known = mask.unsqueeze(1) * valid  # (N, 1, H, W)
    if num_classes == 1 and not multilabel:
        return known > 0, valid
    numbers = torch.arange(num_classes, device=mask.device).view(1, -1, 1, 1)
    if multilabel:
        return (known.long() >> numbers) % 2 == 1, valid
    return (known == numbers) & valid, valid


def to_probs(logits: Tensor, multilabel: bool = False) -> Tensor:
    """Probabilities of each channel, (N, num_classes, H, W)."""
    return logits.sigmoid() if logits.shape[1] == 1 or multilabel else logits.softmax(dim=1)


def to_mask(probs: Tensor, multilabel: bool = False) -> Tensor:
    """(N, num_classes, H, W) probabilities to the (N, H, W) uint8 mask.

    At least one half is foreground, or a label; of several classes it is the likeliest.
    """
    if multilabel:
        bits = 2 ** torch.arange(probs.shape[1], device=probs.device).view(1, -1, 1, 1)
        return ((probs >= 0.5) * bits).sum(dim=1).to(torch.uint8)
    if probs.shape[1] == 1:
        return (probs[:, 0] >= 0.5).to(torch.uint8)
    return probs.argmax(dim=1).to(torch.uint8)
