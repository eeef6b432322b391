"""Processes: each item is answered once, one that kills its process is known, and none outlives the parent."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from pipelines.core import worker_pool
from pipelines.core.worker_pool import Died, answers
from tests.conftest import REPOSITORY


def square(folder, item):
    """What the children run: they import this file."""
    if folder:
        (folder / f"{item} {os.getpid()}").touch()
    if item == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "exit":
        os._exit(3)
    if item == "sleep":
        time.sleep(600)
    if item == "wrong":
        raise KeyError("no such thing")
    return item * item if isinstance(item, int) else item


def run(items, num_processes, folder=None):
    found = list(answers(partial(square, folder), items, num_processes))
    assert sorted(index for index, _ in found) == list(range(len(items)))
    return [answer for _, answer in sorted(found, key=lambda one: one[0])]


@pytest.mark.parametrize("num_processes", [1, 3, 50])
def test_every_item_is_answered_once_by_no_more_processes_than_asked_for(tmp_path, num_processes):
    assert run(range(20), num_processes, tmp_path) == [n * n for n in range(20)]
    pids = {int(path.name.split()[1]) for path in tmp_path.iterdir()}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= min(num_processes, 20)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_nothing_is_an_answer_of_nothing():
    assert run([], 4) == []


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_item_that_kills_its_process_is_known_and_the_others_are_answered(num_processes):
    found = run([1, "kill", 2, "exit", 3, "kill"], num_processes)
    assert found == [
        1,
        Died("was killed by SIGKILL"),
        4,
        Died("ended with exit code 3"),
        9,
        Died("was killed by SIGKILL"),
    ]


def test_an_item_that_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr(worker_pool, "STALLED_S", 4)
    assert run([1, "sleep", 2], 2) == [1, Died("did not end in 4 s"), 4]


def wait_for_answers(reader) -> None:
    """Until no process of a reader that was left alone has anything to do."""
    while not all(worker.connection.poll(0.1) for worker in reader.gi_frame.f_locals["workers"]):
        pass


def test_a_slow_reader_does_not_take_an_answer_for_a_stall(monkeypatch):
    reader = answers(partial(square, None), [1, 2, 3, 4], 2)
    first = next(reader)
    wait_for_answers(reader)
    with monkeypatch.context() as patch:  # as if it had been away for very long
        patch.setattr(worker_pool, "STALLED_S", 0)
        second = next(reader)
    assert sorted([first, second, *reader]) == [(0, 1), (1, 4), (2, 9), (3, 16)]


def test_an_exception_ends_all_and_says_where_it_came_from(tmp_path):
    with pytest.raises(KeyError, match="no such thing") as caught:
        run([1, "wrong", "sleep"], 2, tmp_path)
    assert "in square" in caught.value.__notes__[0]
    pids = {int(path.name.split()[1]) for path in tmp_path.iterdir()}
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_what_is_under_way_is_never_more_than_the_processes(tmp_path):
    """A reader that stops reading stops the work, so memory holds a few answers however many items there are."""
    reader = answers(partial(square, tmp_path), range(100), 2)
    next(reader)
    wait_for_answers(reader)
    assert len(list(tmp_path.iterdir())) == 3
    reader.close()


def test_no_process_outlives_a_killed_parent(tmp_path):
    code = (
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from pipelines.core.worker_pool import answers\n"
        "from tests.pipelines.core.test_worker_pool import square\n"
        "list(answers(partial(square, Path('.')), ['sleep', 'sleep'], 2))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert {int(path.name.split()[1]) for path in tmp_path.iterdir()} <= {child.pid for child in children}
    process.kill()
    process.wait(10)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
