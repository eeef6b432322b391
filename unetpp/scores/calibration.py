"""The calibration of probabilities, and the threshold that gives the best masks.

Both use the foreground's channels, pixel by pixel: the one of a binary task, those of the labels, those of the
classes without the background. Of the pixels to which a calibrated network assigns 0.8, 80 % are foreground.

Counts add up over batches, so that no split has to fit in memory.
"""

import torch
from torch import Tensor

from unetpp.scores.metrics import foreground_iou

NUM_BINS = 10
THRESHOLDS = tuple(number / 20 for number in range(1, 20))


def count_bins(probs: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Pixels by predicted probability, in ten bins of equal width.

    Args:
        probs: (N, K, H, W) probabilities of the foreground's channels.
        truth: (N, K, H, W) bool.
        valid: (N, 1, H, W) bool, False at unlabelled pixels.

    Returns:
        (10, 3) float64: number of pixels, sum of their probabilities, number that are foreground.
    """
    known = valid.expand_as(truth)
    prob, true = probs[known].double(), truth[known].double()
    index = (prob * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    sums = [torch.bincount(index, each, minlength=NUM_BINS) for each in (torch.ones_like(prob), prob, true)]
    return torch.stack(sums, dim=1)


def reliability(bins: Tensor) -> list[dict[str, float | None]]:
    """A row per bin of `count_bins`: mean probability, share that is foreground, share of all pixels.

    The first two are None in a bin without a pixel.
    """
    total = bins[:, 0].sum().clamp(min=1)
    return [
        {
            "confidence": (prob / number).item() if number else None,
            "accuracy": (true / number).item() if number else None,
            "share": (number / total).item(),
        }
        for number, prob, true in bins
    ]


def expected_calibration_error(bins: Tensor) -> float | None:
    """The mean over pixels of the difference of probability and frequency in their bin; None without pixels."""
    total = bins[:, 0].sum()
    return ((bins[:, 1] - bins[:, 2]).abs().sum() / total).item() if total else None


def count_by_threshold(probs: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """The counts of `metrics.confusion` at each of THRESHOLDS, in one pass. Arguments as of `count_bins`.

    Returns:
        (N, T, K, 3) int64: true positives, false positives, false negatives of each channel.
    """
    num_images, num_channels = probs.shape[:2]
    edges = torch.tensor(THRESHOLDS, dtype=probs.dtype, device=probs.device)
    levels = len(THRESHOLDS) + 1
    level = torch.bucketize(probs.contiguous(), edges, right=True)  # how many thresholds it reaches
    channel = torch.arange(num_images * num_channels, device=probs.device).view(num_images, num_channels, 1, 1)
    index = (2 * channel + truth) * levels + level
    counts = torch.bincount(index[valid.expand_as(truth)], minlength=num_images * num_channels * 2 * levels)
    counts = counts.view(num_images, num_channels, 2, levels)
    reached = counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # (N, K, 2, T) at or above each threshold
    false, true = reached.unbind(dim=2)
    missed = counts[:, :, 1].sum(-1, keepdim=True) - true
    return torch.stack([true, false, missed], dim=-1).transpose(1, 2)


def choose_threshold(counts: Tensor) -> int | None:
    """The index in THRESHOLDS of the highest mean foreground IoU of an image, by counts of `count_by_threshold`.

    Ties go to the nearest to 0.5. None without images.
    """
    if len(counts) == 0:
        return None
    ious = foreground_iou(counts).mean(dim=0).tolist()
    return max(range(len(ious)), key=lambda index: (ious[index], -abs(THRESHOLDS[index] - 0.5)))
