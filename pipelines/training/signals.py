"""SIGTERM and Ctrl-C during a training run: it is asked to save a checkpoint and stop."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def heard_signals() -> Iterator[list[int]]:
    """The signals SIGTERM and SIGINT received during the block; a second one raises KeyboardInterrupt at once."""
    signals: list[int] = []

    def heard(number: int, _: Any) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise KeyboardInterrupt
        # Not print: the handler may have interrupted a print.
        os.write(2, b"stopping after a checkpoint; press Ctrl-C again to stop without one\n")

    before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_stoppable(work: Callable[[], T], ask: Callable[[], None]) -> T:
    """Run `work` in another thread while this one handles signals; outside the main thread, just run it.

    Args:
        work: returns early once it was asked to stop.
        ask: asks it to stop; called once, on the first signal.

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
