"""What training minimises: cross-entropy and Dice, averaged over the heads."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def balanced_weights(class_pixels: Sequence[int]) -> list[float]:
    """Weights of classes, inverse to how many pixels they have, and 1 on average over all these pixels.

    A class without a pixel has the weight 1 and no say.
    """
    present = [count for count in class_pixels if count]
    return [sum(present) / (len(present) * count) if count else 1.0 for count in class_pixels]


def segmentation_loss(logits: Tensor, mask: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Half the cross-entropy plus one minus the soft Dice, as in the UNet++ paper's line of code.

    With one class: binary cross-entropy and the Dice of the foreground. With several: softmax
    cross-entropy and the mean Dice of the classes but the background, class 0.

    Each image weighs the same, so that the loss of a batch is the mean over its shards of equal size.

    Args:
        logits: (N, num_classes, H, W) float.
        mask: (N, H, W) integers: 0 or 1 with one class, else class indices.
        class_weights: (max(2, num_classes),) float: what the cross-entropy of a pixel is multiplied by, by its class
            in the mask; the background's first. The mean stays one over pixels: it is not divided by the weights of an
            image, or one of background alone would weigh as much as one of a rare class. Dice has its own balance.

    Returns:
        (N,): the loss of each image.
    """
    logits = logits.float()  # bf16 sums over a whole image lose digits
    if logits.shape[1] == 1:
        truth = mask.unsqueeze(1).float()  # (N, 1, H, W)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")[:, 0]  # (N, H, W)
        probs = logits.sigmoid()
    else:
        entropy = F.cross_entropy(logits, mask.long(), reduction="none")
        truth = F.one_hot(mask.long(), logits.shape[1]).movedim(-1, 1)[:, 1:].float()  # (N, K-1, H, W)
        probs = logits.softmax(dim=1)[:, 1:]
    if class_weights is not None:
        entropy = entropy * class_weights[mask.long()]
    overlap = (probs * truth).sum(dim=(2, 3))
    total = probs.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    dice = (2 * overlap + 1) / (total + 1)  # the ones: an image without foreground, rightly predicted, scores 1
    return 0.5 * entropy.mean(dim=(1, 2)) + 1 - dice.mean(dim=1)


def deep_supervision_loss(logits: tuple[Tensor, ...], mask: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """(num_heads, N): `segmentation_loss` of each head and image; its mean is what training minimises."""
    return torch.stack([segmentation_loss(one, mask, class_weights) for one in logits])
