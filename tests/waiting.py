"""Tests wait for what they need to see, and for no number of seconds."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def wait_for(
    condition: Callable[[], object],
    process: subprocess.Popen | None = None,
    log: Path | None = None,
    timeout_s: float = 120,
) -> None:
    """Until `condition` holds; that `process` ends before is a failure, shown with the `log`."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        said = log.read_text() if log else "it did not come"
        assert process is None or process.poll() is None, said
        assert time.monotonic() < give_up, said
        time.sleep(0.02)
