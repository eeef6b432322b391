"""The processes of one training, as they know of one another: why one gave up, and which one is silent."""

import os
import socket
import threading
import time
from typing import Any

import torch.distributed as dist

from pipelines.training.private_calls import group_store

ANSWER_S = 5.0  # a process that lives answers the roll in this time: it has just seen the same error


class SilentError(RuntimeError):
    """A process that does not answer: stopped, lost, or busy for longer than the others wait."""


class Peers:
    """What the processes tell one another beside the exchange of gradients, through the store that process 0 keeps.

    Every process makes one, at the same time.
    """

    def __init__(self, rank: int, world: int):
        self._rank, self._world = rank, world
        # Held here, for the store to outlive the process group.
        self._store: Any = group_store() if world > 1 else None
        self._names: list[Any] = [None] * world
        if world > 1:
            dist.all_gather_object(
                self._names, f"process {rank} of {world} (pid {os.getpid()} on {socket.gethostname()})"
            )

    def leave(self, note: str) -> None:
        """Leave a note and the group."""
        if self._store is None:
            return
        self._store.set("why", note)
        dist.destroy_process_group()

    def ask(self) -> tuple[str | None, list[str]]:
        """After an exchange that failed: the note of a process that gave up, and the names of those that are silent.

        The roll is called: each process that lives sees such an error at about the same time.
        """
        if self._store is None:
            return None, []
        answers: list[tuple[str | None, list[str]]] = []
        # In a thread: where the keeper of the store is stopped, asking it ends never.
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
        except RuntimeError:  # the keeper is gone
            missing = [0]
        return None, [self._names[rank] for rank in missing]
