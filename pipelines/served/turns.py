"""The queue of requests: one image at a time is in memory and computed, in order of arrival."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(eq=False)
class Ticket:
    """A request in the queue."""

    deadline_ms: float  # by the clock of `Served`; infinite without a budget
    images: int  # how many are not answered yet


class Turns:
    """One thread that does all the work, and its queue, which the work can inspect.

    More threads would only compete for the same cores. With a single one, memory is bounded by one image and one
    thread's runtime buffers, whatever the number of clients and images.
    """

    def __init__(self):
        self._lock, self._worker = threading.Lock(), ThreadPoolExecutor(1, "unetpp-served")
        self._queue: list[Ticket] = []

    def take(self, ticket: Ticket, work: Callable[[], Result]) -> Result:
        """Wait for this request's turn, then run `work` and return its result."""

        def turn() -> Result:
            try:
                return work()
            finally:
                with self._lock:
                    self._queue.remove(ticket)

        with self._lock:
            self._queue.append(ticket)
            found = self._worker.submit(turn)
        return found.result()

    def queue(self) -> list[Ticket]:
        """All waiting requests, beginning with the one that is being answered."""
        with self._lock:
            return list(self._queue)
