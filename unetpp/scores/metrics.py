"""IoU, Dice, precision and recall, from pixel counts, each named by what it averages over.

Published numbers differ more by averaging than by architecture, so there are three of each:

- `*_image`: mean over images of the foreground's score; every image has the same weight, whatever its size.
- `*_pixels`: the foreground's score over the pixels of all images together.
- `*_paper`: mean over images of the mean over background and foreground, as in the paper's released code;
  the background is easy, so this is the highest.
- `miou`: the mean over all named classes, background included, of the IoU over the pixels of all images together, as
  in papers on scenes. Labels have no background.

With several classes "the foreground's score" is the mean over the foreground classes that occur in the
mask or in the prediction. If none occurs in either, the score is 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from unetpp.network.masks import IGNORE, first_class, to_planes


def confusion(
    mask_hat: Tensor, mask: Tensor, num_classes: int, multilabel: bool = False, background: bool = True
) -> Tensor:
    """True positives, false positives and false negatives of each class of each image.

    Args:
        mask_hat: (N, H, W) integers, predicted.
        mask: (N, H, W) integers, true; pixels of IGNORE count nowhere (unetpp.network.masks).
        num_classes: 1 (values 0 and 1), the number of classes with the background, or the number of labels.
        background: class 0 of several is the background.

    Returns:
        (N, K, 3) int64. The first is the background: for labels, the pixels without any; zeros if class 0 is a
        class like the others. K is num_classes, and one more if that does not count the background.
    """
    task = num_classes, multilabel, background
    hat, true = (_with_background(one, *task) for one in (mask_hat, mask))  # (N, K, H, W)
    valid = (mask != IGNORE).unsqueeze(1)
    return torch.stack([hat & true & valid, hat & ~true & valid, ~hat & true & valid], dim=-1).sum(dim=(2, 3))


def _with_background(mask: Tensor, num_classes: int, multilabel: bool, background: bool) -> Tensor:
    """(N, H, W) integers to (N, K, H, W) bool, the background first."""
    planes, _ = to_planes(mask, num_classes, multilabel)
    if first_class(num_classes, multilabel, background):
        return planes
    return torch.cat([~planes.any(dim=1, keepdim=True), planes], dim=1)


def _iou(counts: Tensor) -> Tensor:
    """(..., 3) counts to (...) IoU; nan for a class in neither mask nor prediction."""
    tp, fp, fn = counts.double().unbind(dim=-1)
    return tp / (tp + fp + fn)


def _dice(counts: Tensor) -> Tensor:
    """(..., 3) counts to (...) Dice; nan for a class in neither mask nor prediction."""
    tp, fp, fn = counts.double().unbind(dim=-1)
    return 2 * tp / (2 * tp + fp + fn)


def _over_classes(scores: Tensor) -> Tensor:
    return scores.nanmean(dim=-1).nan_to_num(nan=1.0)


def per_class_iou(counts: Tensor) -> list[float]:
    """(N, K, 3) counts to the foreground classes' IoU, each the mean over the images that contain it; nan for none."""
    return _iou(counts[:, 1:]).nanmean(dim=0).tolist()


def foreground_iou(counts: Tensor) -> Tensor:
    """(..., K, 3) counts of only foreground classes to their (...) mean IoU."""
    return _over_classes(_iou(counts))


def per_image_iou(counts: Tensor) -> Tensor:
    """(N, K, 3) counts to the (N,) foreground IoU of each image."""
    return foreground_iou(counts[:, 1:])


def per_image_dice(counts: Tensor) -> Tensor:
    """(N, K, 3) counts to the (N,) foreground Dice of each image."""
    return _over_classes(_dice(counts[:, 1:]))


def per_class_dice(counts: Tensor) -> list[float]:
    """As `per_class_iou`, of Dice."""
    return _dice(counts[:, 1:]).nanmean(dim=0).tolist()


def precision_recall(counts: Tensor) -> tuple[list[float], list[float]]:
    """(N, K, 3) counts to precision and recall of each foreground class, over the pixels of all images together.

    nan: a class that is never predicted has no precision, one that never occurs has no recall.
    """
    tp, fp, fn = counts[:, 1:].sum(dim=0).double().unbind(dim=-1)  # (K - 1,) each
    return (tp / (tp + fp)).tolist(), (tp / (tp + fn)).tolist()


def mean_iou(counts: Tensor, multilabel: bool = False) -> float | None:
    """(N, K, 3) counts to `miou`; a class in neither mask nor prediction is left out; None if no class is left."""
    found = _iou(counts[:, int(multilabel) :].sum(dim=0)).nanmean().item()
    return None if found != found else found


def scores(counts: Tensor) -> dict[str, float]:
    """The three IoUs and the three Dice of (N, K, 3) counts, by name."""
    result = {}
    each: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (("iou", _iou), ("dice", _dice))
    for name, score in each:
        result[f"{name}_image"] = _over_classes(score(counts[:, 1:])).mean().item()
        result[f"{name}_pixels"] = _over_classes(score(counts[:, 1:].sum(dim=0))).item()
        result[f"{name}_paper"] = _over_classes(score(counts)).mean().item()
    return result
