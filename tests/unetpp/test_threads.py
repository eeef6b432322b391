"""The number of threads: what the process may use, whatever limits it, unless the user says another."""

import os
import subprocess
import sys

import pytest

from unetpp import threads


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight logical cores, two on each physical one, and a container whose limits are files in a folder."""
    siblings = {core: f"{core // 2 * 2}-{core // 2 * 2 + 1}" for core in range(8)}
    read = threads._read
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    monkeypatch.setattr(threads, "_allowed", lambda: set(siblings))
    monkeypatch.setattr(
        threads, "_read", lambda path: siblings[int(path.parts[5][3:])] if path.is_relative_to("/sys") else read(path)
    )
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cores", "computing"),
    [
        ({}, 8, 4),
        ({"cpu.max": "max 100000"}, 8, 4),
        ({"cpu.max": "250000 100000"}, 3, 3),
        ({"cpu.max": "50000 100000"}, 1, 1),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, 4),
    ],
)
def test_threads_are_the_physical_cores_within_the_quota(machine, files, cores, computing):
    for name, text in files.items():
        (machine / name).parent.mkdir(exist_ok=True)
        (machine / name).write_text(text)
    assert (threads.num_cores(), threads.num_threads()) == (cores, computing)


@pytest.mark.usefixtures("machine")
def test_an_affinity_counts_as_fewer_cores(monkeypatch):
    monkeypatch.setattr(threads, "_allowed", lambda: {0, 1, 2})
    assert (threads.num_cores(), threads.num_threads()) == (3, 2)


@pytest.mark.parametrize(("own", "expected"), [(None, threads.num_threads()), ("1", 1)])
def test_torch_computes_with_this_number_or_with_the_users(own, expected):
    """In a fresh process, since OpenMP reads it once."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    environment |= {} if own is None else {"OMP_NUM_THREADS": own}
    code = "import pipelines, os, torch; print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(expected), "PASSIVE"]


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("2,4", 2), ("0", 5), ("many", 5), (None, 5)])
def test_runtimes_take_what_openmp_would_take(monkeypatch, given, expected):
    monkeypatch.setattr(threads, "num_threads", lambda: 5)
    monkeypatch.delenv(threads.NUMBER, raising=False)
    if given is not None:
        monkeypatch.setenv(threads.NUMBER, given)
    assert threads.chosen_threads() == expected
