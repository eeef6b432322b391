"""`unetpp stage`: runs a stage of the installed package in a project's folder, whatever else is in it."""

import importlib
import os
import signal
import sys

from pipelines import end_at_once


def run_stage(stage: str, words: list[str]) -> None:
    """Do what `python -m pipelines.STAGE` does in the source tree."""
    # A project may have folders called pipelines, unetpp or ray: no process may import them as packages.
    os.environ["PYTHONSAFEPATH"] = "1"
    at_interrupt = signal.getsignal(signal.SIGINT)
    if at_interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)  # an exception within an import might end up anywhere
    module = importlib.import_module("pipelines.pages.__main__" if stage == "pages" else f"pipelines.{stage}")
    signal.signal(signal.SIGINT, at_interrupt)
    sys.argv = [f"unetpp stage {stage}", *words]
    module.main()
