"""A training run of several workers in which something is killed at random all the time, and the speed that remains.

    python -m benchmarks.soak --minutes 15 --out soak.log     # its log of a run: docs/faults.md

Every `--every` seconds one of these happens to it: SIGKILL of a worker, of all workers, of the command itself, SIGSTOP
of a worker, SIGTERM of the command. Whenever the command ends it is rerun. At the end its weights must
be, bit for bit, those of the same training run without interruptions, which runs first and whose time is the reference.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe  # noqa: E402
from pipelines.core.params import load_params  # noqa: E402
from pipelines.ingest import ingest  # noqa: E402
from pipelines.prepare import prepare  # noqa: E402
from unetpp.models.model_file import load_model  # noqa: E402

FAULTS = ("SIGKILL of a worker", "SIGKILL of all workers", "SIGKILL of the command", "SIGSTOP of a worker")
FAULTS += ("SIGTERM of the command",)


class Soak:
    """A project folder with a training run in it, and the command that trains."""

    def __init__(self, folder: Path, epochs: int):
        self.folder, self.log = folder, folder / "train.log"
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        synthetic = {"num_images": 120, "size_px": 96, "seed": 1, "masks": "instances"}
        params["ingest"] |= {"kind": "synthetic", "location": None, "synthetic": synthetic}
        params["prepare"] |= {"size": 96}
        params["train"] |= {"epochs": epochs, "num_workers": 2, "max_failures": 1000, "timeout_s": 10}
        params["train"] |= {"checkpoint_every_steps": 5}
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        (folder / "architecture.yaml").write_text("widths: [8, 16, 32]\n", encoding="utf-8")
        read = load_params(folder / "params.yaml")
        ingest(read.ingest, folder / "raw")
        prepare(read.prepare, folder / "raw", folder / "prepared")

    def start(self, name: str) -> subprocess.Popen:
        """The train stage; runs and outputs are in a folder of that name."""
        paths = {"prepared": "prepared", "architecture": "architecture.yaml", "runs": f"{name}/runs"}
        paths |= {"out": f"{name}/model", "reports": f"{name}/reports"}
        command = [sys.executable, "-u", "-m", "pipelines.train", *(f"--{key}={value}" for key, value in paths.items())]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"PYTHONPATH": str(ROOT), "UNETPP_VERBOSE": "1"}
        with self.log.open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=environment)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_model(self.folder / name / "model").network.state_dict()

    def epoch(self) -> str:
        """The last epoch that was printed."""
        found = re.findall(r"epoch (\d+/\d+)", self.log.read_text())
        return found[-1] if found else "none"


def workers_of(command: subprocess.Popen) -> list[psutil.Process]:
    """The processes that train."""
    found = []
    for process in psutil.Process(command.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def strike(command: subprocess.Popen, draws: random.Random) -> str:
    """Let something happen; in words what it was."""
    workers, fault = workers_of(command), draws.choice(FAULTS)
    if "worker" in fault and not workers:
        fault = "SIGKILL of the command"  # it has none at the moment
    if fault == "SIGKILL of the command":
        command.kill()
    elif fault == "SIGTERM of the command":
        command.terminate()
    elif fault == "SIGSTOP of a worker":
        draws.choice(workers).suspend()
    else:
        for worker in workers if "all" in fault else [draws.choice(workers)]:
            worker.kill()
    return fault


def soak(run: Soak, minutes: float, every_s: float, draws: random.Random, say) -> tuple[float, int, int]:
    """Train to the end while faults happen: seconds, faults, and how often the command was given."""
    began, faults, given = time.monotonic(), 0, 1
    command = run.start("soaked")
    next_fault = began + every_s
    while True:
        code = command.poll()
        now = time.monotonic()
        if code == 0:
            return now - began, faults, given
        if code is not None:
            say(f"{now - began:6.0f} s  the command ended with {code} after epoch {run.epoch()}; it is rerun")
            command, given = run.start("soaked"), given + 1
        elif now >= next_fault and now - began < 60 * minutes:
            faults, next_fault = faults + 1, next_fault + every_s
            say(f"{now - began:6.0f} s  epoch {run.epoch()}  {strike(command, draws)}")
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="faults happen for so long")
    parser.add_argument("--every", type=float, default=45, help="seconds between faults")
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        run = Soak(Path(folder), options.epochs)
        say(f"{describe()} 2 workers, {options.epochs} epochs")
        began = time.monotonic()
        if code := run.start("whole").wait():
            raise SystemExit(f"the uninterrupted training run ended with {code}:\n{run.log.read_text()}")
        whole_s = time.monotonic() - began
        say(f"{whole_s:6.0f} s  the uninterrupted training run")
        run.log.unlink()
        soaked_s, faults, given = soak(run, options.minutes, options.every, random.Random(options.seed), say)
        one, other = run.weights("whole"), run.weights("soaked")
        same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        say(f"{soaked_s:6.0f} s  the same with {faults} faults, the command run {given} times")
        say(f"weights {'equal, bit for bit' if same else 'DIFFER'}; share of useful time {whole_s / soaked_s:.0%}")
        if not same:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
