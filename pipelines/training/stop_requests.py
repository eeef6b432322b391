"""What process 0 asks of a training run on a cluster: to stop, or to save checkpoints before a machine is preempted."""

import time
from collections.abc import Callable

from pipelines.storage.run_store import RunStore, StopFile
from pipelines.training.epochs import Wish

KEEP_EVERY_S = 10  # between the checkpoints of a training run that is about to lose a machine


class Wishes:
    """Called by `epochs` between two steps.

    Args:
        run: a file `stop` next to its checkpoints asks it to stop.
        threatened: the ranks whose machine will be preempted, as the cluster was told.
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
            self._say(f"the machine of process {which} will be preempted: saving a checkpoint every {KEEP_EVERY_S} s")
        self._keeps = True
        return Wish.KEEP
