"""The pipeline around `unetpp`: params, sources, Ray, MLflow and a file for each stage."""

import os
import signal
import sys

INTERRUPTED = "interrupted; rerun the command to resume"


VERBOSE = "UNETPP_VERBOSE"


def is_verbose() -> bool:
    """Whether everything that a stage can tell is printed."""
    return os.environ.get(VERBOSE, "0") not in ("", "0")


def detail(line: str) -> None:
    """Print a line that is seen only where it is verbose."""
    if is_verbose():
        print(line, flush=True)


def end_at_once(*_: object) -> None:
    """Ctrl-C before a stage has begun anything: while it imports, an exception might end up anywhere."""
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)  # until `run_command`

from unetpp.offline import silence  # noqa: E402  (no import comes before the signal)
from unetpp.threads import set_threads  # noqa: E402

silence()
set_threads()
