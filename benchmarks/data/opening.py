"""Time and memory of one process that opens a split and reads it: python -m benchmarks.data.opening FILE."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from unetpp.data.arrow_split import Split


def memory_mib() -> dict[str, float]:
    """This process's anonymous memory, which is its own, and its mapped file pages, which the system takes back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"anonymous": found["RssAnon"], "file": found["RssFile"]}


def read_epoch(path: Path) -> None:
    """In a process of its own: open a split that is not in the page cache, and read every byte in random order."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    before, began = memory_mib(), time.perf_counter()
    split = Split(path)
    opened = time.perf_counter() - began
    at_open = memory_mib()
    began = time.perf_counter()
    Split(path)
    again = time.perf_counter() - began
    order, total, seen = np.random.default_rng(0).permutation(len(split)), 0, []
    began = time.perf_counter()
    for number, index in enumerate(order.tolist()):
        image, mask = split[index]
        total += int(image.reshape(-1)[::1024].sum()) + int(mask.reshape(-1)[::1024].sum())  # touches each page
        if number in (len(order) // 10, len(order) - 1):
            seen.append(memory_mib())
    result = {
        "rows": len(split),
        "open_s": opened,
        "again_s": again,
        "epoch_s": time.perf_counter() - began,
        "bytes": path.stat().st_size,
    }
    result |= {"open_anon": at_open["anonymous"] - before["anonymous"]}
    result |= {"anon_tenth": seen[0]["anonymous"] - before["anonymous"]}
    result |= {"anon_end": seen[1]["anonymous"] - before["anonymous"], "file_end": seen[1]["file"] - before["file"]}
    print(json.dumps(result))


if __name__ == "__main__":
    read_epoch(Path(sys.argv[1]))
