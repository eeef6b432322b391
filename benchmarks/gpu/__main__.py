"""What this project does on one GPU, in at most 8 minutes: speed, memory, distance from the roofline, correctness.

    python -m benchmarks.gpu [--minutes 8] [--only PART ...] [--out benchmarks/gpu.md]

It needs torch, numpy, pillow, safetensors and tqdm, and reads everything from the repository: weights are random,
images synthetic. segmentation_models.pytorch, MONAI and pytest are used if they are installed. Each part runs in a
process of its own for at most its seconds; one that fails or takes longer is one line of the page, beside what it had
found. The page is written after each part.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.gpu.marked_tests import ROOT, run_tests
from benchmarks.gpu.passes import run_compiled, run_eagerly
from benchmarks.gpu.roofline import compare_with_floor
from benchmarks.gpu.scale import REAL, TOY, Scale
from benchmarks.gpu.steps import augment, compare_peers, compare_steps, compile_step, exchange, repeat
from benchmarks.machine import describe, head
from pipelines.training.ddp import set_determinism

LEAST_S = 5.0  # a part that has less is not begun


class Part(NamedTuple):
    title: str
    seconds: float
    run: Callable[[Scale], Iterator[str]]


def machine(scale: Scale) -> Iterator[str]:
    yield describe(scale.device, [torch.float32, *scale.half_types] if scale.compiles else ())


PARTS = {
    "machine": Part("", 20, machine),
    "step": Part("A training step", 90, compare_steps),
    "roofline": Part("Share of the roofline", 40, compare_with_floor),
    "passes": Part("Each depth's pass", 50, run_eagerly),
    "tests": Part("Tests marked gpu", 40, run_tests),
    "exchange": Part("DDP in one process, against none", 30, exchange),
    "deterministic": Part("`train.deterministic`", 30, repeat),
    "augment": Part("Augmentation on the device", 20, augment),
    "peers": Part("A training step, against peers", 60, compare_peers),
    "compiled": Part("Each depth's pass, compiled", 55, run_compiled),
    "compile": Part("A compiled training step", 45, compile_step),
}


def run_part(name: str, seconds: float, toy: bool) -> list[str]:
    """What a part found in its seconds, and a line on why it is not all."""
    began, ended = time.monotonic(), ""
    with tempfile.TemporaryDirectory() as folder:
        lines, log = Path(folder, "lines"), Path(folder, "log")
        lines.touch()
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(lines), *["--toy"] * toy]
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        try:
            code = process.wait(seconds)
            if code:
                last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
                ended = f"It failed with {code} after {time.monotonic() - began:.0f} s: {' '.join(last)[:300]}"
        except subprocess.TimeoutExpired:
            ended = f"Its {seconds:.0f} s were over before it was done."
        finally:
            if process.poll() is None or ended:
                _end(process)
        return lines.read_text().splitlines() + (["", ended] if ended else [])


def _end(process: subprocess.Popen) -> None:
    """End a part and whatever it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(names: list[str], minutes: float, toy: bool, out: Path | None) -> str:
    began, page = time.monotonic(), ""
    some = f" --only {' '.join(names[1:])}" if names != [*PARTS] else ""
    command = f"python -m benchmarks.gpu --minutes {minutes:g}{some}{' --toy' * toy}"
    told, sections = "The machine is not known.", []
    for name in names:
        left = 60 * minutes - (time.monotonic() - began)
        part, start = PARTS[name], time.monotonic()
        found = run_part(name, min(part.seconds, left), toy) if left > LEAST_S else ["Not run: no time was left."]
        if name == "machine":
            told = " ".join(found)
        else:
            taken = f"{time.monotonic() - start:.0f} s of at most {part.seconds:.0f}"
            sections += [f"## {part.title}", "", f"Part `{name}`, {taken}.", "", *found, ""]
        page = "\n".join([*head("On a GPU", command, told), *sections]).rstrip() + "\n"
        print(f"{time.monotonic() - began:.0f} s: {name}", file=sys.stderr, flush=True)
        if out:
            out.write_text(page)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", nargs="+", choices=list(PARTS)[1:], help="these parts alone")
    parser.add_argument("--toy", action="store_true", help="toy sizes on the processor: shows that the code runs")
    parser.add_argument("--out", type=Path, help="default: benchmarks/gpu.md; with --toy none")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.toy or torch.cuda.is_available()):
        parser.error("torch finds no CUDA device; --toy runs the same code at toy sizes on the processor")
    if args.part:
        # What the train stage sets; and before cuBLAS begins, what it needs where bits are to be repeated.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        set_determinism(False)
        with args.out.open("w") as file:
            for line in PARTS[args.part].run(TOY if args.toy else REAL):
                print(line, file=file, flush=True)
        return
    out = args.out or (None if args.toy or args.only else Path(__file__).parents[1] / "gpu.md")
    print(run_all(["machine", *(args.only or list(PARTS)[1:])], args.minutes, args.toy, out))


if __name__ == "__main__":
    main()
