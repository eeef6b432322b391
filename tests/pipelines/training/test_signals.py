"""What signals do to a command whose work other processes do."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, signal, sys, threading
from pipelines.training.signals import run_stoppable
asked = threading.Event()
signals = [getattr(signal, name) for name in sys.argv[1:]]
def work():
    for number in signals:
        os.kill(os.getpid(), number)
        asked.wait(10)
    if len(signals) > 1:
        threading.Event().wait(30)  # until the second signal ends the process
    return "done"
def ask():
    print("asked")
    asked.set()
before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
try:
    print(run_stoppable(work, ask))
except KeyboardInterrupt:
    print("interrupted")
print([signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before)
"""


@pytest.mark.parametrize(
    ("signals", "printed"),
    [
        ([], "done True"),
        (["SIGTERM"], "asked done True"),
        (["SIGINT"], "asked interrupted True"),
        (["SIGINT", "SIGINT"], "asked interrupted True"),
        (["SIGTERM", "SIGINT"], "asked interrupted True"),
    ],
    ids=str,
)
def test_signal_asks_the_work_to_stop_and_a_second_one_does_not_wait_for_it(signals, printed):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *signals],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=25,
        check=True,
    )
    assert done.stdout.split() == printed.split()
    assert ("stopping after a checkpoint" in done.stderr) == bool(signals)


def test_error_of_the_work_and_work_of_another_thread_pass_through():
    code = (
        "import threading\n"
        "from pipelines.training.signals import run_stoppable\n"
        "thread = threading.Thread(target=lambda: print(run_stoppable(lambda: 1, print)))\n"
        "thread.start(), thread.join()\n"
        "try:\n    run_stoppable(lambda: 1 / 0, print)\n"
        "except ZeroDivisionError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert done.stdout == "1\ndivision by zero\n"
