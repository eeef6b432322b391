"""How every command of the pipeline ends: a user's mistake in one message and exit code 2, no traceback."""

import os
import signal
import sys
from collections.abc import Callable

from unetpp.errors import UserError

INTERRUPTED = "interrupted; rerun the command to resume"


def run_command(main: Callable[[], None]) -> None:
    """Run a stage's or the command line's `main` and exit as the shell and DVC expect.

    Exit codes: 0 done, 2 a user's mistake (`UserError`, printed as it is, or a package that is not installed), 130
    interrupted. Any other exception is a bug and keeps its traceback.
    """
    try:
        if callable(signal.getsignal(signal.SIGINT)):  # a shell starts what runs in the background with Ctrl-C ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "pipelines", "unetpp"):
            raise
        print(f"error: {package} is not installed: pip install 'unetpp[pipelines]'", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends already
        print(INTERRUPTED, file=sys.stderr)
        raise SystemExit(130) from None


def end_at_once(*_: object) -> None:
    """Ctrl-C before a stage has begun anything: while it imports, an exception might end up anywhere."""
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)
