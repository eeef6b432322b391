"""How every command of the pipeline ends: a user's mistake in one message and exit code 2, no traceback."""

import atexit
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from pipelines import INTERRUPTED
from pipelines.core.full_disk import full_disk
from pipelines.core.redaction import redacted
from pipelines.core.temporary_folders import scratch
from unetpp.errors import UserError, to_install


@cache
def _clear_after_workers() -> None:
    """Keep the sockets of worker processes where the next command removes them after a kill."""
    stack = ExitStack()
    atexit.register(stack.close)
    # Else `multiprocessing` makes a folder pymp-... in TMPDIR, which stays for ever. It has no public name for this.
    config = multiprocessing.current_process()._config  # pyright: ignore[reportAttributeAccessIssue]
    with suppress(OSError, UserError):  # without a place for it: whoever needs one will say so
        config["tempdir"] = str(stack.enter_context(scratch()))


def run_command(main: Callable[[], None]) -> None:
    """Run a stage's or the command line's `main` and exit as the shell and DVC expect.

    Exit codes: 0 done, 2 a user's mistake (`UserError`, or a package that is not installed), 130 interrupted. Any other
    exception is a bug, and keeps its traceback and exit code 1. What is printed is `redacted`.
    """
    try:
        if callable(signal.getsignal(signal.SIGINT)):  # a shell starts what runs in the background with Ctrl-C ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _clear_after_workers()
        main()
    except UserError as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "pipelines", "unetpp"):
            raise
        print(f"error: {package} is not installed: {to_install('pipelines')}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends already
        print(INTERRUPTED, file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if told := full_disk(error, Path.cwd()):
            print(f"error: {told}", file=sys.stderr)
            raise SystemExit(2) from None
        print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        raise SystemExit(1) from None
