"""What the pipeline adds to a training run: Ray Train in the steady state, the start, memory, and a second process.

    python -m benchmarks.overheads --out benchmarks/overheads.md

Four measurements, each with the command that makes only this one (`--only loop|start|processes`):

- loop: epochs of a plain torch loop, written here, and of `pipelines.training.epochs`, alternately in one process; then
  the same inside of a worker of Ray Train, which reports and checkpoints after each epoch. The ratio is of images a
  second in the steps, the median over pairs of neighbouring epochs.
- start: from the start of `python -m pipelines.train` to the end of its first step, and what the seconds in between
  were spent on; then the memory (PSS) of each kind of process while it trains.
- processes: two gloo processes of one thread against one of two threads, at the same joint batch; and how much of the
  difference stays with one process alone, with two that exchange nothing, and with two that exchange gradients.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.machine import describe, head
from benchmarks.overheads.loop import read_loop
from benchmarks.overheads.processes import read_processes
from benchmarks.overheads.shipped_params import ROOT
from benchmarks.overheads.start import read_start
from pipelines.core.params import load_params
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from unetpp.training.loop import choose_precision

CPU = torch.device("cpu")
READINGS = {"loop": "Steady state", "start": "The start, and memory", "processes": "Two processes of one thread"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=READINGS)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=10, help="of loop")
    parser.add_argument("--rounds", type=int, default=3, help="of start and processes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    command = f"python -m benchmarks.overheads --rounds {args.rounds} --epochs {args.epochs} --images {args.images}"
    machine = describe(CPU, [torch.float32, choose_precision("auto", CPU)])
    lines = [*head("What the pipeline adds to a training run", command, machine), "`--only` measures one part.", ""]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = load_params(ROOT / "params.yaml")
        synthetic = params.ingest.synthetic.model_copy(update={"num_images": args.images, "size_px": 96})
        ingest(params.ingest.model_copy(update={"synthetic": synthetic}), folder / "raw")
        prepare(params.prepare, folder / "raw", folder / "prepared")
        for reading, title in READINGS.items():
            if args.only in (None, reading):
                lines += [f"## {title}", "", f"`python -m benchmarks.overheads --only {reading}`", ""]
                if reading == "loop":
                    lines += read_loop(folder / "prepared", folder, args.widths, args.epochs)
                elif reading == "start":
                    lines += read_start(folder / "prepared", folder, args.rounds)
                else:
                    lines += read_processes(folder, args.widths, 8, 10, args.rounds)
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
