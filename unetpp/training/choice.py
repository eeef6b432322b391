"""Which epoch of a training run is kept (measured in benchmarks/epochs.md)."""

from collections.abc import Sequence

EPOCHS = 3
# The reason in reports, after the number of the epoch.
WHY = f"the highest val IoU: the mean of the depths, and that over the last {EPOCHS} epochs where it is lower"


def steady(scores: Sequence[float]) -> float:
    """The score of the last of these epochs, or the mean score of the last three epochs if that is lower.

    So a lucky epoch does not beat its neighbours, and an unlucky one does not profit from them.
    """
    last = scores[-EPOCHS:]
    return min(scores[-1], sum(last) / len(last))
