"""The start of a training run until its first step, and the memory of its processes.

This file itself is run as the stage, with moments written down: python -m benchmarks.overheads.start STAMPS ...
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import psutil

from benchmarks.overheads.shipped_params import ROOT, make_params
from pipelines.core.params import Params
from pipelines.training import ray_worker


class Stamps:
    """Moments that several processes write into one file."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, name: str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([name, time.time()]) + "\n")

    def read(self) -> dict[str, float]:
        """The last moment of each name: of several processes the slowest one's."""
        return dict(json.loads(line) for line in self.path.read_text().splitlines())


def stamped_train(stamps: Stamps) -> None:
    """`python -m pipelines.train` with moments written down; its arguments are in sys.argv."""
    stamps.add("torch and the stage imported")
    from pipelines import train
    from pipelines.training import in_process

    run_on_ray, whole_epochs, whole_cluster = train.run_on_ray, ray_worker.epochs, train.cluster
    train_worker = ray_worker.train_worker

    def watched(*args, **kwargs):
        first = [True]

        def watch(*_):
            if first:
                first.clear()
                stamps.add("first step")

        stamps.add("worker's training begins")
        return whole_epochs(*args[:6], **(kwargs | {"watch": watch}))

    def stamped_worker(spec, run):
        stamps.add("worker's function called")
        ray_worker.epochs = watched
        return train_worker(spec, run)

    def stamped_run(*args, **kwargs):
        stamps.add("ray.init done")
        found = run_on_ray(*args, **kwargs)
        stamps.add("fit returned")
        return found

    ray_worker.train_worker, train.run_on_ray, in_process.epochs = stamped_worker, stamped_run, watched
    train.cluster = whole_cluster
    train.main()
    stamps.add("results written, Ray ended")


def start_train(prepared: Path, folder: Path, params: Params, name: str) -> tuple[subprocess.Popen, Stamps, float]:
    import yaml

    home = folder / name
    home.mkdir()
    (home / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))
    (home / "architecture.yaml").write_text("widths: [16, 32, 64, 128, 256]\n")
    arguments = ["--prepared", str(prepared), "--architecture", "architecture.yaml", "--runs", "runs"]
    arguments += ["--out", "models", "--reports", "reports"]
    stamps = Stamps(home / "stamps")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    began = time.time()
    with open(home / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.overheads.start", str(stamps.path), *arguments],
            cwd=home,
            env=kept | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    return process, stamps, began


def read_start(prepared: Path, folder: Path, rounds: int) -> list[str]:
    lines, memory = [], {}
    for workers in (1, 2):
        spent: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds):
            params = make_params(workers, 1, 3)
            process, stamps, began = start_train(prepared, folder, params, f"start {workers} {number}")
            while process.poll() is None and not (stamps.path.exists() and "first step" in stamps.path.read_text()):
                time.sleep(0.05)
            time.sleep(1)
            memory[workers] = read_memory(process.pid)
            assert process.wait(300) == 0, (folder / f"start {workers} {number}" / "log").read_text()
            ended, found = time.time(), stamps.read()
            spent["first step"].append(found["first step"] - began)
            previous = began
            for name, moment in sorted(found.items(), key=lambda one: one[1]):
                spent[f"until: {name}"].append(moment - previous)
                previous = moment
            spent["until: the process has ended"].append(ended - previous)
        lines += [
            f"{workers} worker(s): first step after {statistics.median(spent.pop('first step')):.1f} s, median of "
            f"{rounds}; then two more epochs. Where the seconds go:",
            "",
            "| | s |",
            "| --- | ---: |",
            *(f"| {name} | {statistics.median(seconds):.1f} |" for name, seconds in spent.items()),
            "",
        ]
    lines += [
        "Memory (PSS) one second after the first step:",
        "",
        "| process | number | MiB |",
        "| --- | ---: | ---: |",
    ]
    for workers, kinds in memory.items():
        for name, sizes in sorted(kinds.items(), key=lambda one: -sum(one[1])):
            lines.append(f"| {workers} worker(s): {name} | {len(sizes)} | {sum(sizes):.0f} |")
        ours = sum(sum(sizes) for name, sizes in kinds.items() if name in ("the stage", "ray::RayTrainWorker"))
        whole = sum(map(sum, kinds.values()))
        lines.append(f"| {workers} worker(s): Ray itself, without stage and workers | | {whole - ours:.0f} |")
    return [*lines, ""]


def read_memory(pid: int) -> dict[str, list[float]]:
    """MiB of each process of a family, by what it is."""
    found: dict[str, list[float]] = defaultdict(list)
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for one in family:
        try:
            size, line = one.memory_full_info().pss / 2**20, one.cmdline()
        except psutil.Error:
            continue
        found["the stage" if one.pid == pid else _kind(line)].append(size)
    return found


def _kind(line: list[str]) -> str:
    first = line[0] if line else "gone"
    if first.startswith("ray::"):
        return first
    script = next((part for part in line[1:3] if part.endswith(".py")), first)
    return Path(script).name


if __name__ == "__main__":
    stamped_train(Stamps(Path(sys.argv.pop(1))))
