"""How every command of the pipeline ends: a user's mistake in one message and exit code 2, no traceback."""

import atexit
import multiprocessing
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache

from pipelines.core.files import scratch
from unetpp.errors import UserError


@cache
def _clear_after_workers() -> None:
    """Have this process's workers keep their sockets where the next command clears them away after a kill."""
    stack = ExitStack()
    atexit.register(stack.close)
    # Else `multiprocessing` makes a folder pymp-... in TMPDIR, which stays for ever. It has no public name for this.
    config = multiprocessing.current_process()._config  # pyright: ignore[reportAttributeAccessIssue]
    with suppress(OSError, UserError):  # where there is no place for it, who needs one will say so
        config["tempdir"] = str(stack.enter_context(scratch()))


def run_command(main: Callable[[], None]) -> None:
    """Run a stage's or the command line's `main` and exit as the shell and DVC expect.

    Exit codes: 0 done, 2 a user's mistake (`UserError`, printed as it is, or a package that is not installed), 130
    interrupted. Any other exception is a bug and keeps its traceback.
    """
    try:
        _clear_after_workers()
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
        print("interrupted; rerun the command to resume", file=sys.stderr)
        raise SystemExit(130) from None
