"""SIGTERM and Ctrl-C while processes elsewhere work: they are asked to stop by themselves, and then it ends."""

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


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
    signals: list[int] = []
    done: dict[str, Any] = {}

    def heard(number: int, _: Any) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise KeyboardInterrupt

    def run() -> None:
        try:
            done["value"] = work()
        except BaseException as error:
            done["error"] = error

    before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        asked = False
        while thread.is_alive():
            thread.join(0.1)
            if signals and not asked:
                asked = True
                print("stops with a checkpoint; a second Ctrl-C ends it without", file=sys.stderr, flush=True)
                ask()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if "error" in done:
        raise done["error"]
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    return done["value"]
