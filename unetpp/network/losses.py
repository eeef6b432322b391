"""Training losses, per head and image.

A loss is one function in LOSSES, from logits, truth and valid pixels to one number per image. It handles one class,
several classes, and labels (`unetpp.network.masks`). All images have the same weight, so the loss of a batch is the
mean over its equally large shards.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unetpp.errors import UserError
from unetpp.network.masks import MASK, first_class, to_planes, to_probs
from unetpp.network.targets import part, targets_loss

FOCUS = 2.0  # gamma of the focal loss (Lin et al. 2017)
MISSED, EXTRA = 0.7, 0.3  # weights of false negatives and false positives (Salehi et al. 2017)


def balanced_weights(class_pixels: Sequence[int]) -> list[float]:
    """Weights of classes, inversely proportional to their numbers of pixels, with mean 1 over all pixels.

    A class without pixels has the weight 1, and does not affect the mean.
    """
    present = [count for count in class_pixels if count]
    return [sum(present) / (len(present) * count) if count else 1.0 for count in class_pixels]


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """The means (N, K) of (N, K, H, W) over the valid pixels (N, 1, H, W); 0 if there are none."""
    return (values * valid).sum(dim=(2, 3)) / valid.sum(dim=(2, 3)).clamp(min=1)


def _entropy(logits: Tensor, truth: Tensor, exclusive: bool) -> Tensor:
    """Cross-entropy of each pixel: (N, 1, H, W) for exclusive classes, else (N, K, H, W)."""
    if exclusive:
        return -(truth * logits.log_softmax(dim=1)).sum(dim=1, keepdim=True)
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none")


def _overlap(
    logits: Tensor, truth: Tensor, valid: Tensor, exclusive: bool, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft true positives, false positives and false negatives of the channels from `first` on, (N, K) each."""
    probs, truth = (to_probs(logits, logits.shape[1], not exclusive) * valid)[:, first:], truth[:, first:]
    tp = (probs * truth).sum(dim=(2, 3))
    return tp, probs.sum(dim=(2, 3)) - tp, (truth * valid).sum(dim=(2, 3)) - tp


def _dice(logits: Tensor, truth: Tensor, valid: Tensor, exclusive: bool, first: int) -> Tensor:
    """(N,): one minus the soft Dice, mean over the classes."""
    tp, fp, fn = _overlap(logits, truth, valid, exclusive, first)
    # The ones: an image without foreground, if predicted correctly, scores 1.
    return 1 - ((2 * tp + 1) / (2 * tp + fp + fn + 1)).mean(dim=1)


def ce_dice(logits: Tensor, truth: Tensor, valid: Tensor, weight: Tensor, exclusive: bool, first: int) -> Tensor:
    """Half the cross-entropy plus one minus Dice, as in the code of the UNet++ paper (BCE-Dice for one class)."""
    entropy = _mean(weight * _entropy(logits, truth, exclusive), valid).mean(dim=1)
    return 0.5 * entropy + _dice(logits, truth, valid, exclusive, first)


def focal_dice(logits: Tensor, truth: Tensor, valid: Tensor, weight: Tensor, exclusive: bool, first: int) -> Tensor:
    """As `ce_dice`, but pixels that are already correct have less weight: (1 - p of the truth) ** 2."""
    entropy = _entropy(logits, truth, exclusive)
    entropy = (1 - torch.exp(-entropy)) ** FOCUS * entropy
    return 0.5 * _mean(weight * entropy, valid).mean(dim=1) + _dice(logits, truth, valid, exclusive, first)


def tversky(logits: Tensor, truth: Tensor, valid: Tensor, _weight: Tensor, exclusive: bool, first: int) -> Tensor:
    """One minus the Tversky index, in which a missed pixel has more weight than an extra one (Salehi et al. 2017)."""
    tp, fp, fn = _overlap(logits, truth, valid, exclusive, first)
    return 1 - ((tp + 1) / (tp + EXTRA * fp + MISSED * fn + 1)).mean(dim=1)


def lovasz(logits: Tensor, truth: Tensor, valid: Tensor, _weight: Tensor, exclusive: bool, _first: int) -> Tensor:
    """The Lovász extension of one minus IoU (Berman et al. 2018), per image.

    Applied to hinge errors for one class or labels; to softmax errors for several classes, as the mean over the classes
    (including the background) that occur in the image.
    """
    if exclusive:
        errors = (truth - logits.softmax(dim=1)).abs()
    else:
        errors = 1 - logits * (2 * truth - 1)
    # Ignored pixels are sorted to the end with truth 0 and error 0, so they change no sum before them.
    errors = torch.where(valid > 0, errors, torch.full_like(errors, -torch.inf)).flatten(2)  # (N, K, P)
    errors, order = errors.sort(dim=2, descending=True)
    truth = (truth * valid).flatten(2).gather(2, order)  # (N, K, P)
    total = truth.sum(dim=2, keepdim=True)  # (N, K, 1)
    union = total + (1 - truth).cumsum(dim=2)
    jaccard = 1 - (total - truth.cumsum(dim=2)) / union  # of the worst 1, 2, ... pixels being wrong
    gradient = torch.diff(jaccard, dim=2, prepend=torch.zeros_like(total))
    each = (errors.clamp(min=0) * gradient).sum(dim=2)  # (N, K)
    if not exclusive:
        return each.mean(dim=1)
    present = total[..., 0] > 0
    return (each * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)


LOSSES = {"ce_dice": ce_dice, "focal_dice": focal_dice, "lovasz": lovasz, "tversky": tversky}


def segmentation_loss(
    logits: Tensor,
    mask: Tensor,
    class_weights: Tensor | None = None,
    loss: str = "ce_dice",
    multilabel: bool = False,
    background: bool = True,
) -> Tensor:
    """The loss of each image.

    Args:
        logits: (N, num_classes, H, W) float.
        mask: (N, H, W) integers (unetpp.network.masks); IGNORE pixels have no effect.
        class_weights: (max(2, num_classes),) float: factors of the cross-entropy of a pixel by its class in the mask,
            beginning with the background. The mean remains over pixels and is not divided by the weights of the image;
            otherwise an image of only background would count as much as one with a rare class. Dice is balanced by
            itself. Not used for labels, nor by losses without a cross-entropy.
        loss: a name in LOSSES.
        multilabel: the channels are labels, which may overlap, not exclusive classes.
        background: of several classes, class 0 is the background and is left out of the overlap terms.

    Returns:
        (N,) float32.
    """
    logits = logits.float()  # bf16 sums over a whole image lose digits
    num_classes = logits.shape[1]
    truth, valid = to_planes(mask, num_classes, multilabel)
    weight = valid.float()
    if class_weights is not None:
        weight = class_weights[torch.where(valid, mask.unsqueeze(1), 0).long()]  # (N, 1, H, W)
    exclusive = num_classes > 1 and not multilabel
    first = first_class(num_classes, multilabel, background)
    return LOSSES[loss](logits, truth.float(), valid.float(), weight, exclusive, first)


def deep_supervision_loss(
    logits: tuple[Tensor, ...],
    mask: Tensor,
    class_weights: Tensor | None = None,
    loss: str = "ce_dice",
    multilabel: bool = False,
    background: bool = True,
    targets: tuple[str, ...] = MASK,
) -> Tensor:
    """(num_heads, N): `segmentation_loss` of each head and image; training minimises their sum with `head_weights`.

    With further `targets`, `mask` is the result of `unetpp.network.targets.join`, and `targets_loss` is added.
    """
    task = class_weights, loss, multilabel, background
    if targets == MASK:
        return torch.stack([segmentation_loss(one, mask, *task) for one in logits])
    truth, extra = part(mask), len(targets) - 1
    return torch.stack(
        [segmentation_loss(one[:, :-extra], truth.mask, *task) + targets_loss(one[:, -extra:], truth) for one in logits]
    )


def head_weights(weights: str | Sequence[float], depths: Sequence[int]) -> Tensor:
    """The weight of each head in training: (num_heads,) float.

    Args:
        weights: "mean" (as in the paper), "sum", or one number per depth, shallowest first; a shallower network, or one
            with a single head, uses the numbers of its own depths.
        depths: the depths of the heads.

    Raises:
        UserError: fewer numbers than the deepest head needs, or a number that is not above zero: that head would
            never be trained.
    """
    if isinstance(weights, str):
        return torch.full((len(depths),), {"mean": 1 / len(depths), "sum": 1.0}[weights])
    if len(weights) < max(depths) or min(weights) <= 0:
        raise UserError(
            f"head weights: found {list(weights)}; expected mean, sum, or a number above 0 for each depth 1 to "
            f"{max(depths)}, the shallowest first"
        )
    return torch.tensor([float(weights[depth - 1]) for depth in depths])
