"""What process 0 asks of a training that runs on a cluster: to stop, or to keep what it has while a machine is left."""

import time
from collections.abc import Callable

from pipelines.storage.run_store import RunStore, StopFile
from pipelines.training.epochs import Wish

KEEP_EVERY_S = 10  # between the checkpoints of a training that is about to lose a machine


class Wishes:
    """Asked by `epochs` between two steps.

    Args:
        run: a file beside its checkpoints asks to stop.
        threatened: the processes whose machine is going to be taken away, as the cluster was told.
        say: prints a line.
    """

    def __init__(self, run: RunStore, threatened: Callable[[], list[int]], say: Callable[[str], None]):
        self._stop, self._threatened, self._say = StopFile(run), threatened, say
        self._keeps, self._kept = False, float("-inf")  # whether a checkpoint is being made; when the last one was

    def __call__(self) -> Wish:
        if self._stop():
            return Wish.STOP
        now = time.monotonic()
        if self._keeps:
            self._keeps, self._kept = False, now
        ranks = self._threatened()
        if not ranks or now - self._kept < KEEP_EVERY_S:
            return Wish.GO_ON
        if self._kept == float("-inf"):
            which = ", ".join(map(str, ranks))
            self._say(f"the machine of process {which} will be taken away: checkpoints now and every {KEEP_EVERY_S} s")
        self._keeps = True
        return Wish.KEEP
