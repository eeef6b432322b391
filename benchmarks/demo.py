"""Time and memory of `make demo` as a new user runs it: in a fresh clone, then the same command again.

    python -m benchmarks.demo --out benchmarks/demo.md

The set-up (`make setup`) is timed separately, because it depends on network and disk. Memory is the sum over all
processes that the command has started of their proportional share (PSS), read every second.
"""

import argparse
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks.machine import describe, head

ROOT = Path(__file__).resolve().parents[1]


def memory_gib(root: psutil.Process) -> float:
    """The proportional share of memory of a process and all its descendants."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended in between
    return total / 2**30


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Seconds, peak GiB, and what was printed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHONPATH"))}
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    peak, tree = 0.0, psutil.Process(process.pid)

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, memory_gib(tree))
            time.sleep(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, _ = process.communicate()
    seconds = time.monotonic() - began
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{printed}")
    return seconds, peak, printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments, machine = parser.parse_args(), describe()
    with tempfile.TemporaryDirectory(prefix="demo of ") as parent:
        folder = Path(parent) / "a clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        rows = {}
        for name in ("make setup", "make demo", "make demo, again"):
            seconds, peak, printed = timed(name.split(",")[0].split(), folder)
            rows[name] = (seconds, peak)
            print(f"{name}: {seconds:.0f} s, {peak:.1f} GiB\n{printed}", flush=True)
    lines = [
        *head("`make demo`, from a fresh clone", "python -m benchmarks.demo --out benchmarks/demo.md", machine),
        "Memory is the sum of all its processes, at its peak.",
        "",
        "| command | seconds | peak memory, GiB |",
        "| --- | ---: | ---: |",
        *(f"| `{name}` | {seconds:.0f} | {peak:.1f} |" for name, (seconds, peak) in rows.items()),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
