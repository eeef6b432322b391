"""SIGTERM and Ctrl-C while a training runs: it is asked to stop by itself, with a checkpoint, and then it ends."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def heard_signals() -> Iterator[list[int]]:
    """The signals SIGTERM and SIGINT that came while the block lasts; a second one raises KeyboardInterrupt at once."""
    signals: list[int] = []

    def heard(number: int, _: Any) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise KeyboardInterrupt
        # Not by print: the handler may have interrupted one.
        os.write(2, b"stops with a checkpoint; a second Ctrl-C ends it without\n")

    before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_stoppable(work: Callable[[], T], ask: Callable[[], None]) -> T:
    """Do `work` in a thread, while this one minds the signals; where it is no main thread, just do it.

    Args:
        work: returns, sooner than else, after it was asked to stop.
        ask: asks it; called once, by the first signal.

    Returns:
        what `work` returned, also after SIGTERM.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when `work` has returned; after a second signal, at once.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    done: dict[str, Any] = {}

    def run() -> None:
        try:
            done["value"] = work()
        except BaseException as error:
            done["error"] = error

    with heard_signals() as signals:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        asked = False
        while thread.is_alive():
            thread.join(0.1)
            if signals and not asked:
                asked = True
                ask()
    if "error" in done:
        raise done["error"]
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    return done["value"]
