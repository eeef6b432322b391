"""Which epoch of a training is kept."""

from collections.abc import Mapping


def score_epoch(ious: Mapping[int, float]) -> float:
    """How good an epoch is, by its val IoU at each depth."""
    return sum(ious.values()) / len(ious)
