"""What a person sees of a training: on a terminal, in a log, and of processes that have no terminal."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.console import progress
from pipelines.console.progress import Progress, relayed, screen_of

ROW = {"epoch": 1, "train_loss": 0.5, "val_iou_L1": 0.25, "val_iou_L2": 0.75, "images_per_s": 8, "data_wait_share": 0}


class Screen:
    moves = True

    def __init__(self):
        self.moved, self.said = [], []
        self.move, self.say = self.moved.append, self.said.append


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_line_inside_of_an_epoch_has_step_speed_rest_and_the_iou_of_every_depth(clock):
    screen = Screen()
    watched = Progress(4, screen)
    for number in range(1, 11):
        watched.step(0, number, [6] * 10)
        clock[0] += 1
    assert screen.moved[-1] == "epoch 1/4  step 10/10  6 images/s  ETA 0:00:30"  # 9 steps in 9 s, 30 are left
    watched.epoch(ROW)
    watched.step(1, 1, [6] * 10)
    clock[0] += 1
    watched.step(1, 2, [6] * 10)
    assert screen.moved[-1].startswith("epoch 2/4  step 2/10  6 images/s  ETA 0:0")
    assert screen.moved[-1].endswith("  val IoU L1 0.2500  L2 0.7500")


def test_line_is_rewritten_some_times_a_second_however_many_steps_there_are(clock):
    screen = Screen()
    watched = Progress(1, screen)
    for number in range(1, 1001):
        watched.step(0, number, [8] * 1000)
        clock[0] += 0.001
    assert 2 <= len(screen.moved) <= 4


def test_rest_is_counted_from_where_a_training_goes_on(clock):
    screen = Screen()
    watched = Progress(10, screen, [ROW] * 5)
    watched.step(5, 1, [8, 8])
    clock[0] += 10
    watched.epoch(ROW | {"epoch": 6})
    assert screen.said[-1].endswith("ETA 0:01:20")  # half an epoch in 10 s, 4 are left
    clock[0] += 70
    watched.epoch(ROW | {"epoch": 10})
    assert "ETA" not in screen.said[-1]


def test_log_has_a_line_an_epoch_and_no_other(capsys):
    watched = Progress(3, screen_of({}))
    for number in range(1, 4):
        watched.step(0, number, [8] * 3)
    watched.epoch(ROW)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert re.fullmatch(r"epoch 1/3  loss 0\.5000  val IoU L1 0\.2500  L2 0\.7500  .*  ETA \d:\d\d:\d\d\n", printed)
    assert "\r" not in printed


def test_lines_of_a_process_without_a_terminal_appear_on_that_of_the_driver(tmp_path):
    code = (
        "from pipelines.console.progress import relayed, screen_of\n"
        "with relayed(True) as settings:\n"
        "    screen = screen_of(settings)\n"
        "    print(type(screen).__name__)\n"
        "    screen.move('step 1')\n"
        "    screen.say('epoch 1')\n"
    )
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], stdout=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert shown == "Relay\r\n\rstep 1\x1b[K\repoch 1\x1b[K\r\n"


def test_without_a_terminal_nothing_is_relayed(capsys):
    with relayed(True) as settings:
        assert settings == {}
