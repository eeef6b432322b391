"""One registration of a model at a time: MLflow has no compare-and-set, so two would both find nothing and create it.

A store in a local file is locked with a file lock, which ends with its process. On a database or a server, the turn is
a tag of the registered model, taken by Fischer's algorithm: if the tag is free, write your name into it, wait longer
than any write that began earlier can take, and proceed if it still has your name. The holder renews the tag; if it was
not renewed for a minute, its holder is considered dead.
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
SETTLE_S = 2.0  # from reading that the turn is free to the end of the write; if it took longer, the write is void
BEAT_S = 5.0
STALE_S = 60.0


class TurnLostError(UserError):
    """Another process took the turn because this one did not renew it for a minute; trying again is safe."""


def sqlite_path(uri: str) -> Path | None:
    """The path of a store in a local file; None for a server or a database."""
    parts = urlsplit(uri)
    return Path(parts.path.removeprefix("/")) if parts.scheme.startswith("sqlite") else None


@contextmanager
def exclusive(client, name: str) -> Iterator[Callable[[], None]]:
    """Wait for the turn to change the registered model `name`, which exists; no other process has it during the block.

    Yields:
        a check to call before anything that must not happen twice: it raises `TurnLostError` if the turn was lost.
    """
    if path := sqlite_path(client.tracking_uri):
        with file_locked(f"{path}.lock", "another registration is running in this store"):
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
        with suppress(Exception):  # if the store is unreachable, the next process waits until the turn is stale
            turn.give_back()


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """One process at a time opens a store in a local file: two that create its tables at once would corrupt them."""
    path = sqlite_path(uri)
    if path and os.access(path.parent, os.W_OK):
        with file_locked(f"{path}.opening"):
            yield
    else:  # without write access no tables are created
        yield


@contextmanager
def file_locked(path: str, waits_for: str | None = None) -> Iterator[None]:
    """Hold the lock on a file, which is created; `waits_for` is printed if another process has the lock."""
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if waits_for:
                print(f"{waits_for}; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Turn:
    """The turn as a tag: its holder, and how often it was renewed."""

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
                    print(f"another registration is running ({found.rsplit(' ', 2)[0]}); waiting for it", flush=True)
                told = True
                time.sleep(random.uniform(0.5, 1.5))
                continue
            self._write(0)
            took_s = time.monotonic() - begun
            if took_s > SETTLE_S:
                print(f"the store took {took_s:.1f} s for a write, too long for a safe lock; trying again", flush=True)
                self.give_back()  # if another process already has the turn, it will see that its name is gone
                continue
            time.sleep(SETTLE_S)
            if self._is_mine():
                return

    def renew(self) -> None:
        for beat in itertools.count(1):
            if self.ended.wait(BEAT_S):
                return
            with suppress(Exception):  # the store may come back; if not, the holder's own calls fail
                if self._is_mine():
                    self._write(beat)

    def check(self) -> None:
        if not self._is_mine():
            raise TurnLostError(
                f"the turn to register {self._name} went to another process, because this one hung for "
                f"{STALE_S:.0f} s; rerun the command"
            )

    def give_back(self) -> None:
        if self._is_mine():
            self._client.delete_registered_model_tag(self._name, TAG)
