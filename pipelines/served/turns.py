"""Whose turn it is: one image at a time is in memory and at work, in order of arrival."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(eq=False)
class Ticket:
    """Of a request in the queue."""

    deadline_ms: float  # by the clock of `Served`; infinite without a budget
    images: int  # that it has left


class Turns:
    """One thread that does all work, and a queue before it that the work may look at.

    Threads of many requests would only share the processors, and the memory of the machine bounds one image, and what a
    runtime keeps for one thread, and not as many as there are images and clients.
    """

    def __init__(self):
        self._lock, self._worker = threading.Lock(), ThreadPoolExecutor(1, "unetpp-served")
        self._queue: list[Ticket] = []

    def take(self, ticket: Ticket, work: Callable[[], Result]) -> Result:
        """Wait for the turn, and what `work` returns in it."""

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
        """All that are in it, first who has the turn."""
        with self._lock:
            return list(self._queue)
