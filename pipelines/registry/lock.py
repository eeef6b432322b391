"""One registration of a model at a time: MLflow has no compare-and-set, so two would both find nothing and both create.

A store in a local file is locked as a file; the lock goes with its process. On a database or a server the turn is a
tag of the registered model, taken by Fischer's rule: write your name where none stands, wait longer than any write
that was begun before yours takes, and go on if your name still stands there. Whoever holds it renews it; where it
was not renewed for a minute its holder is taken for dead.
"""

import fcntl
import itertools
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from unetpp.errors import UserError

TAG = "registering"
SETTLE_S = 2.0  # from reading that the turn is free to having written one's name takes less, or it does not count
BEAT_S = 5.0
STALE_S = 60.0


class TurnLostError(UserError):
    """Another has taken the turn, because this process did not renew it for a minute; trying again is safe."""


def sqlite_path(uri: str) -> Path | None:
    """The file of a store in a local file; None for a server or a database."""
    parts = urlsplit(uri)
    return Path(parts.path.removeprefix("/")) if parts.scheme.startswith("sqlite") else None


@contextmanager
def exclusive(client, name: str) -> Iterator[Callable[[], None]]:
    """Wait for the turn to change the registered model `name`, which exists; no other has it during the block.

    Yields:
        a check to make before what must not happen twice: it raises `TurnLostError` where the turn was taken away.
    """
    if path := sqlite_path(client.tracking_uri):
        with file_locked(f"{path}.lock", "another registration is at work in this store"):
            yield lambda: None
        return
    turn = _Turn(client, name)
    turn.take()
    renewing = threading.Thread(target=turn.renew, daemon=True)
    renewing.start()
    try:
        yield turn.check
    finally:
        turn.ended.set()
        renewing.join()
        with suppress(Exception):  # where the store is away the next one waits until the turn is stale
            turn.give_back()


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """One process at a time opens a store in a local file: two that create its tables at once break them."""
    path = sqlite_path(uri)
    if path and os.access(path.parent, os.W_OK):
        with file_locked(f"{path}.opening"):
            yield
    else:  # who may not write there creates no tables either
        yield


@contextmanager
def file_locked(path: str, waits_for: str | None = None) -> Iterator[None]:
    """Hold the lock on a file, which is made; `waits_for` is printed where another process has it."""
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if waits_for:
                print(f"{waits_for}; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Turn:
    """The turn as a tag: who has it, and how often it was renewed."""

    def __init__(self, client, name: str):
        self._client, self._name = client, name
        self._mine = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex[:12]}"
        self.ended = threading.Event()

    def _read(self) -> str:
        return self._client.get_registered_model(self._name).tags.get(TAG, "")

    def _write(self, beat: int) -> None:
        self._client.set_registered_model_tag(self._name, TAG, f"{self._mine} {beat}")

    def _is_mine(self) -> bool:
        return self._read().startswith(self._mine)

    def take(self) -> None:
        seen, since, told = "", time.monotonic(), False
        while True:
            begun = time.monotonic()
            found = self._read()
            if found != seen:
                seen, since = found, begun
            if found and begun - since < STALE_S:
                if not told:
                    print(f"another registration is at work ({found.rsplit(' ', 2)[0]}); waiting for it", flush=True)
                told = True
                time.sleep(random.uniform(0.5, 1.5))
                continue
            self._write(0)
            if time.monotonic() - begun > SETTLE_S:
                self.give_back()  # so slow that another may have the turn already; it will see that its name is gone
                continue
            time.sleep(SETTLE_S)
            if self._is_mine():
                return

    def renew(self) -> None:
        for beat in itertools.count(1):
            if self.ended.wait(BEAT_S):
                return
            with suppress(Exception):  # the store may come back; the holder's own calls say so if not
                if self._is_mine():
                    self._write(beat)

    def check(self) -> None:
        if not self._is_mine():
            raise TurnLostError(
                f"the turn to register {self._name} went to another process, as this one stood still for "
                f"{STALE_S:.0f} s; rerun the command"
            )

    def give_back(self) -> None:
        if self._is_mine():
            self._client.delete_registered_model_tag(self._name, TAG)
