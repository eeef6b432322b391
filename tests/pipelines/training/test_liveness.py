"""Processes that lose one of theirs say which: real ones, gloo, no Ray."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipelines.training.liveness import Peers
from tests.pipelines.training.small import start_group
from tests.waiting import wait_for

pytestmark = pytest.mark.slow
WORLD = 3


def work(rank: int, folder: Path, what: str, who: int) -> None:
    """Exchange something; the process `who` does something else, and the others write down what they are told."""
    peers = Peers(rank, WORLD)
    if rank == who and what == "note":
        peers.leave("a bug")
        signal.pause()
    elif rank == who:
        os.kill(os.getpid(), signal.SIGSTOP if what == "stopped" else signal.SIGKILL)
    try:
        dist.all_reduce(torch.zeros(3))
    except RuntimeError:
        answer = peers.ask()
        (folder / f"{rank}.partial").write_text(json.dumps(answer))
        (folder / f"{rank}.partial").rename(folder / f"{rank}.json")
        signal.pause()  # a process that has seen it lives on until Ray ends it


@pytest.mark.parametrize(
    ("what", "who"),
    [
        ("killed", 2),
        ("note", 1),
        # 0 keeps the store that the others ask; test_ray_faults stops it, too
        pytest.param("stopped", 0, marks=pytest.mark.nightly),
        pytest.param("stopped", 1, marks=pytest.mark.nightly),
        pytest.param("killed", 0, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_processes_name_the_one_that_does_not_answer_or_give_its_note(tmp_path, what, who):
    processes = start_group(WORLD, work, tmp_path, what, who, timeout_s=4)
    try:
        answers = {rank: tmp_path / f"{rank}.json" for rank in range(WORLD) if rank != who}
        wait_for(lambda: all(path.exists() for path in answers.values()))
        for path in answers.values():
            note, silent = json.loads(path.read_text())
            if what == "note":
                assert (note, silent) == ("a bug", [])
            else:
                named = f"process {who} of {WORLD} (pid {processes[who].pid} on {socket.gethostname()})"
                assert (note, silent) == (None, [named])
    finally:
        for process in processes:
            process.kill()
            process.join()
