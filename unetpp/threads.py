"""How many threads compute here, and how they wait: one rule for every stage and command.

Set before torch is imported, whose OpenMP reads it once. What the user has set stands. Processes that are started
inherit it; a training's own number is `train.cpus_per_worker`, a trial's `search.cpus_per_worker`.
"""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
NUMBER, WAIT = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"


def num_cores() -> int:
    """The logical cores that this process may use: by its affinity and by the quota of its container."""
    cores = len(_allowed())
    quota = _quota()
    return min(cores, max(1, math.ceil(quota))) if quota else cores


def num_threads() -> int:
    """Threads that compute: one for each physical core, since two on one share what convolutions need."""
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {_read(Path(topology.format(core))) or str(core) for core in _allowed()}
    return min(len(siblings), num_cores())


def set_threads() -> None:
    """Settle the number for this process and those that it starts."""
    os.environ.setdefault(NUMBER, str(num_threads()))
    # Threads that spin for their next part take the cores from whoever else computes (benchmarks/threads.md).
    os.environ.setdefault(WAIT, "PASSIVE")


def chosen_threads() -> int:
    """Those of this process, for runtimes that do not read OMP_NUM_THREADS themselves."""
    first = os.environ.get(NUMBER, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else num_threads()


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota() -> float | None:
    """Cores that the container may fill, by version 2 or 1 of cgroups; None without a limit."""
    found = _read(CGROUP / "cpu.max").split()
    if not found:
        found = [_read(CGROUP / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]
    try:
        share = float(found[0]) / float(found[1])
    except (ValueError, IndexError, ZeroDivisionError):  # "max", or no such file
        return None
    return share if share > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
