"""Which epoch of a training is kept (measured in benchmarks/epochs.md)."""

from collections.abc import Sequence

EPOCHS = 3
# Of an epoch that was kept, after its number.
WHY = f"the highest val IoU: the mean of the depths, and that over the last {EPOCHS} epochs where it is lower"


def steady(scores: Sequence[float]) -> float:
    """How good the last of these epochs is, by its score or the mean of the last three, whichever is lower.

    A lucky epoch among worse ones is no better than these, and an unlucky one among better ones no better than itself.
    """
    last = scores[-EPOCHS:]
    return min(scores[-1], sum(last) / len(last))
