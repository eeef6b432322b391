"""How busy the machine was while a stage ran: processor, memory, disk, network and GPUs, as a small table.

Of the machine that runs the stage's own process, as MLflow names such numbers; workers on other machines of a
cluster are not in it.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipelines.core.tables import write_rows

INTERVAL_S = 2.0
MAX_ROWS = 240  # then every second row is dropped, and rows are taken half as often
MB = 1e6


@contextmanager
def sampled(path: Path, interval_s: float = INTERVAL_S) -> Iterator[None]:
    """Take a row every some seconds while the block runs, and write them to `path`, also when the block fails."""
    rows: list[dict[str, float]] = []
    done = threading.Event()
    thread = threading.Thread(target=_sample, args=(rows, done, interval_s), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _write(path, rows)


def _sample(rows: list[dict[str, float]], done: threading.Event, interval_s: float) -> None:
    before = psutil.net_io_counters()
    psutil.cpu_percent()  # the first call has nothing to compare with
    while True:
        rows.append({"time": round(time.time(), 3)} | read_machine() | read_gpus())
        if before:
            now = psutil.net_io_counters()
            rows[-1]["network_receive_megabytes"] = round((now.bytes_recv - before.bytes_recv) / MB, 3)
            rows[-1]["network_transmit_megabytes"] = round((now.bytes_sent - before.bytes_sent) / MB, 3)
        if len(rows) >= MAX_ROWS:
            del rows[1::2]
            interval_s *= 2
        if done.wait(interval_s):
            return


def read_machine() -> dict[str, float]:
    """Processor and memory now, by MLflow's names; the processor's share is that since the last call."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(".")
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round((memory.total - memory.available) / MB, 1),
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_megabytes": round(disk.used / MB, 1),
        "disk_usage_percentage": disk.percent,
    }


def others_share(seconds: float = 1.0) -> float:
    """The share of this machine's processors that other processes took in the last second, while this one waits."""
    return psutil.cpu_percent(seconds) / 100


def read_gpus() -> dict[str, float]:
    """Each GPU's use now, by MLflow's names; nothing without NVIDIA's driver.

    From the driver's own program: torch would open a context, half a GiB on each GPU, in a process that only waits.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    fields = ("utilization.gpu", "memory.used", "memory.total", "power.draw")
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for number, line in enumerate(printed.strip().splitlines()):
        used, megabytes, total, watts = (_number(cell) for cell in line.split(","))
        values = {
            "utilization_percentage": used,
            "memory_usage_megabytes": None if megabytes is None else round(megabytes * 2**20 / MB, 1),
            "memory_usage_percentage": None if not total or megabytes is None else round(100 * megabytes / total, 1),
            "power_usage_watts": watts,
        }
        found |= {f"gpu_{number}_{key}": value for key, value in values.items() if value is not None}
    return found


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # [N/A], on a card that does not say
        return None


def _write(path: Path, rows: list[dict[str, float]]) -> None:
    write_rows(path, dict.fromkeys(name for row in rows for name in row), rows)
