"""Work on many items in processes that may die of one of them, and that never outlive their parent."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

import cv2

# Longest time for one item; only a decoder in an endless loop takes longer.
STALLED_S = 600


@dataclass(frozen=True)
class Died:
    """Returned instead of an answer: how the process with the item ended."""

    how: str


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    index: int = -1  # of the item at work; -1 is none
    since: float = 0.0


def answers(
    function: Callable[[Any], Any], items: Sequence, num_processes: int
) -> Generator[tuple[int, Any], None, None]:
    """Yield (index, function(item)) for all items as they are done, or (index, Died) where the process was killed.

    A process has one item at a time, so it is known which item killed it; another takes its place. What was
    not asked for yet and what is answered but not taken are never more than the processes. An exception of
    the function ends all, with the traceback of the process as a note.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(_needed(sys.modules[getattr(function, "func", function).__module__]))
    todo = iter(range(len(items)))
    workers: list[_Worker] = []

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        process.start()
        theirs.close()  # or its end would not be seen here
        return _Worker(process, ours)

    def give(worker: _Worker) -> None:
        worker.index = next(todo, -1)
        worker.since = time.monotonic()
        if worker.index >= 0:
            with suppress(OSError):  # it died while it waited, and is found so below
                worker.connection.send(items[worker.index])

    try:
        for _ in range(min(num_processes, len(items))):
            workers.append(start())
            give(workers[-1])
        while busy := [worker for worker in workers if worker.index >= 0]:
            wait([worker.connection for worker in busy], timeout=STALLED_S / 10)
            for worker in busy:
                index, ready = worker.index, worker.connection.poll()
                if not ready and time.monotonic() - worker.since < STALLED_S:
                    continue
                try:
                    if not ready:
                        raise EOFError
                    answer, error = worker.connection.recv()
                except (EOFError, OSError):
                    answer, error = Died(_end(worker, stalled=not ready)), None
                    workers[workers.index(worker)] = worker = start()
                if error:
                    raise error
                give(worker)
                yield index, answer
    finally:
        for worker in workers:
            _end(worker, stalled=True)


def _needed(module: ModuleType) -> list[str]:
    """What the server that forks the processes imports once, so that each of them starts in milliseconds."""
    inside = vars(module).values()
    used = {module.__name__, *(one.__name__ for one in inside if isinstance(one, ModuleType))}
    used |= {str(getattr(one, "__module__", None)) for one in inside}
    # Not a module that runs as a command: each process runs that one anew, and Python warns where it is there already.
    return sorted(name for name in used if name in sys.modules and name != "__main__")


def _end(worker: _Worker, stalled: bool) -> str:
    """End a process, and say how it ended."""
    worker.connection.close()
    worker.process.join(0 if stalled else 5)
    worker.process.kill()
    worker.process.join()
    code = worker.process.exitcode or 0
    worker.process.close()
    if stalled:
        return f"did not end in {STALLED_S} s"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    begin_process()
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = function(item), None
        except Exception as error:
            error.add_note(f"in another process:\n{traceback.format_exc()}")
            answer = None, error
        connection.send(answer)


def begin_process() -> None:
    """What a process of ours does first: one thread for OpenCV, and no life without its parent."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # Linux alone has it
        file.write("1000")  # out of memory: the kernel kills this process, not its parent
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the parent: a killed parent cannot end its processes, which would wait forever."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
