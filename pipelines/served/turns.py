"""Whose turn it is: one image at a time is in memory and at work, in order of arrival."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class Ticket:
    """Of a request in the queue."""

    deadline_ms: float  # by the clock of `Served`; infinite without a budget
    images: int  # that it has left


class Turns:
    """A lock that is fair, and whose holder sees who waits behind it.

    Threads of many requests would only share the processors, and the memory of the machine bounds one image and not as
    many as there are images and clients.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._queue: list[Ticket] = []

    @contextmanager
    def turn(self, ticket: Ticket) -> Iterator[None]:
        """Wait for it, hold it and pass it on."""
        with self._changed:
            self._queue.append(ticket)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._queue[0] is ticket)
            yield
        finally:
            with self._changed:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def queue(self) -> list[Ticket]:
        """All that are in it, first who has the turn."""
        with self._changed:
            return list(self._queue)
