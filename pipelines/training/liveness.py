"""How the processes of a training run learn about each other: why one gave up, and which one does not answer."""

import os
import socket
import threading
import time
from typing import Any

import torch.distributed as dist

from pipelines.training.private_calls import group_store

ANSWER_S = 5.0  # a live process answers the roll call within this time: it has just seen the same error


class SilentError(RuntimeError):
    """A process does not answer: it is stopped, lost, or busy for longer than the others wait."""


class Peers:
    """What the processes tell each other besides gradients, through the store that process 0 keeps.

    All processes must construct it at the same time.
    """

    def __init__(self, rank: int, world: int):
        self._rank, self._world = rank, world
        # Kept here so that the store outlives the process group.
        self._store: Any = group_store() if world > 1 else None
        self._names: list[Any] = [None] * world
        if world > 1:
            dist.all_gather_object(
                self._names, f"process {rank} of {world} (pid {os.getpid()} on {socket.gethostname()})"
            )

    def leave(self, note: str) -> None:
        """Leave a note that says why, then leave the process group."""
        if self._store is None:
            return
        self._store.set("why", note)
        dist.destroy_process_group()

    def ask(self) -> tuple[str | None, list[str]]:
        """After a failed exchange: the note of a process that gave up, and the names of those that do not answer.

        This is a roll call: every live process sees such an error, and calls this, at about the same time.
        """
        if self._store is None:
            return None, []
        answers: list[tuple[str | None, list[str]]] = []
        # In a thread: if the process that keeps the store is stopped, a request to it never returns.
        thread = threading.Thread(target=lambda: answers.append(self._call_roll()), daemon=True)
        thread.start()
        thread.join(2 * ANSWER_S)
        return answers[0] if answers else (None, [self._names[0]])

    def _call_roll(self) -> tuple[str | None, list[str]]:
        give_up, missing = time.monotonic() + ANSWER_S, list(range(self._world))
        try:
            self._store.set(f"here/{self._rank}", "")
            while missing and time.monotonic() < give_up:
                if self._store.check(["why"]):
                    return self._store.get("why").decode(), []
                missing = [rank for rank in missing if not self._store.check([f"here/{rank}"])]
                time.sleep(0.1)
        except RuntimeError:  # process 0, which keeps the store, is gone
            missing = [0]
        return None, [self._names[rank] for rank in missing]
