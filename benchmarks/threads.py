"""How many threads, and how they wait: passes and steps of a network, alone and beside a second process.

    python -m benchmarks.threads [--rounds 15] [--minutes 5] [--passive] [--spins 300 3000]

A process for each setting stays alive; the settings take turns, so that what else the machine does meets all of them.
"Beside another" is two processes of one setting at the same time, such as a server beside a training run.
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

from benchmarks.machine import describe
from unetpp.threads import num_threads

WORK = """
import os, sys, time, torch
from unetpp.network.model import NestedUNet
torch.manual_seed(0)
network = NestedUNet((16, 32, 64, 128))
image, images = torch.rand(1, 3, 96, 96), torch.rand(4, 3, 96, 96)
def predict():
    network.eval()
    with torch.inference_mode():
        for _ in range(5):
            network(image)
def step():
    network.train()
    torch.stack([one.mean() for one in network(images)]).sum().backward()
works = {"predict": predict, "step": step}
for line in sys.stdin:
    began = time.perf_counter()
    works[line.strip()]()
    print(time.perf_counter() - began, flush=True)
"""
PASSES = {"predict": 5, "step": 1}
WAITS = {"as OpenMP does": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}


class Worker:
    """A process of one setting, which works when it is asked."""

    def __init__(self, threads: int, wait: str):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
        environment = clean | {"OMP_NUM_THREADS": str(threads)} | WAITS[wait]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", WORK], env=environment, **pipes)

    def ask(self, work: str) -> None:
        assert self._process.stdin is not None
        print(work, file=self._process.stdin, flush=True)

    def answer(self) -> float:
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="at most")
    parser.add_argument("--minutes", type=float, default=5, help="after which no further round begins")
    parser.add_argument("--passive", action="store_true", help="leave threads that spin out, which slow the others")
    parser.add_argument("--spins", nargs="*", default=[], metavar="N", help="lengths of GOMP_SPINCOUNT, measured too")
    options = parser.parse_args()
    cores = num_threads()
    WAITS.update({f"GOMP_SPINCOUNT={spins}": {"GOMP_SPINCOUNT": spins} for spins in options.spins})
    waits = ["passive"] if options.passive else list(WAITS)
    settings = [(1, waits[0]), *((cores, wait) for wait in waits)]
    pairs = {setting: [Worker(*setting), Worker(*setting)] for setting in settings}
    found: dict[tuple, list[float]] = {}
    began, number = time.monotonic(), 0
    for number in range(options.rounds + 1):
        if number > 1 and time.monotonic() - began > 60 * options.minutes:
            break
        for work in PASSES:
            for setting, pair in pairs.items():
                for beside in (1, 2):
                    for one in pair[:beside]:
                        one.ask(work)
                    took = [one.answer() for one in pair[:beside]]
                    if number:  # the first time is a warm-up
                        found.setdefault((setting, work, beside), []).append(1000 * median(took) / PASSES[work])
    for pair in pairs.values():
        for one in pair:
            one.end()
    head = "| threads | they wait | pass, ms | pass beside another, ms | step, ms | step beside another, ms |"
    lines = [head, "| --- | --- | --- | --- | --- | --- |"]
    for setting in settings:
        cells = [f"{median(found[setting, work, beside]):.1f}" for work in PASSES for beside in (1, 2)]
        lines.append(f"| {setting[0]} | {setting[1]} | {' | '.join(cells)} |")
    print(f"{describe()} {number} rounds.\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
