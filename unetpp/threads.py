"""How many threads compute, and how they wait: one rule for every stage and command.

Set this before torch is imported, because its OpenMP reads it only once. Values that the user has set are kept, and
child processes inherit them. Training runs have their own setting, `train.cpus_per_worker`, and trials
`search.cpus_per_worker`.
"""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
NUMBER, WAIT = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"


def num_cores() -> int:
    """The number of logical cores that this process may use, given its affinity and its container's quota."""
    cores = len(_allowed())
    quota = _quota()
    return min(cores, max(1, math.ceil(quota))) if quota else cores


def num_threads() -> int:
    """The number of computing threads: one per physical core, because convolutions gain nothing from a second one."""
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {_read(Path(topology.format(core))) or str(core) for core in _allowed()}
    return min(len(siblings), num_cores())


def set_threads() -> None:
    """Set the number of threads for this process and its child processes."""
    os.environ.setdefault(NUMBER, str(num_threads()))
    # Threads that spin while they wait take the cores from other computations (benchmarks/threads.md).
    os.environ.setdefault(WAIT, "PASSIVE")


def chosen_threads() -> int:
    """The number of threads of this process, for runtimes that do not read OMP_NUM_THREADS themselves."""
    first = os.environ.get(NUMBER, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else num_threads()


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota() -> float | None:
    """The number of cores that the container may use, from cgroups version 2 or 1; None without a limit."""
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
