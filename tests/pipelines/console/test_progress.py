"""What a person sees of a training run: on a terminal, and in a log."""

import io
import re
from functools import partial
from types import SimpleNamespace

import pytest

from pipelines.console import progress
from pipelines.console.progress import Progress, watched

ROW = {"epoch": 1, "train_loss": 0.5, "val_iou_L1": 0.25, "val_iou_L2": 0.75, "images_per_s": 8, "data_wait_share": 0}


@pytest.fixture
def terminal(monkeypatch):
    """Standard output is a terminal of 200 columns; the lines that were shown on it, also those that moved."""
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stdout=shown))
    monkeypatch.setattr(progress, "print", partial(print, file=shown), raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda: re.findall(r"\r([^\r]*)\x1b\[K", shown.getvalue())


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_line_inside_of_an_epoch_has_step_speed_rest_and_the_iou_of_every_depth(clock, terminal):
    watched = Progress(4)
    for number in range(1, 11):
        watched.step(0, number, [6] * 10)
        clock[0] += 1
    assert terminal()[-1] == "epoch 1/4  step 10/10  6 images/s  ETA 0:00:30"  # 9 steps in 9 s, 30 are left
    watched.epoch(ROW)
    watched.step(1, 1, [6] * 10)
    clock[0] += 1
    watched.step(1, 2, [6] * 10)
    assert terminal()[-1].startswith("epoch 2/4  step 2/10  6 images/s  ETA 0:0")
    assert terminal()[-1].endswith("  val IoU L1 0.2500  L2 0.7500")


def test_line_is_rewritten_some_times_a_second_however_many_steps_there_are(clock, terminal):
    watched = Progress(1)
    for number in range(1, 1001):
        watched.step(0, number, [8] * 1000)
        clock[0] += 0.001
    assert 2 <= len(terminal()) <= 4


def test_rest_is_counted_from_where_a_training_goes_on(clock, terminal):
    watched = Progress(10, [ROW] * 5)
    watched.step(5, 1, [8, 8])
    clock[0] += 10
    watched.epoch(ROW | {"epoch": 6})
    assert terminal()[-1].endswith("ETA 0:01:20")  # half an epoch in 10 s, 4 are left
    clock[0] += 70
    watched.epoch(ROW | {"epoch": 10})
    assert "ETA" not in terminal()[-1]


def test_log_has_the_first_and_last_epoch_and_one_each_half_minute(monkeypatch, clock, capsys):
    monkeypatch.delenv("UNETPP_VERBOSE")
    watched = Progress(40)
    for epoch in range(1, 41):
        watched.epoch(ROW | {"epoch": epoch})
        clock[0] += 2
    assert re.findall(r"^epoch (\d+)/40", capsys.readouterr().out, re.MULTILINE) == ["1", "16", "31", "40"]


def test_log_of_a_verbose_run_has_a_line_an_epoch_and_no_other(capsys):
    watched = Progress(3)
    for number in range(1, 4):
        watched.step(0, number, [8] * 3)
    watched.epoch(ROW)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert re.fullmatch(r"epoch 1/3  loss 0\.5000  val IoU L1 0\.2500  L2 0\.7500  .*  ETA \d:\d\d:\d\d\n", printed)
    assert "\r" not in printed


def test_what_takes_longer_than_some_seconds_is_shown_with_the_time_that_is_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    for _ in watched(range(4), "test images"):
        now[0] += 20
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert re.fullmatch(r"test images: \d of 4, ETA 0\d:\d\d", lines[0])
    assert list(watched(range(3), "quick")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
