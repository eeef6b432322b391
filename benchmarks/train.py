"""A training step: the classic implementation and the peers against ours, interleaved in one process.

    python -m benchmarks.train --out benchmarks/train.md

Ratios are of medians over interleaved rounds. On a CPU one thread computes, and its CPU seconds count. Peak
memory is the most that torch holds in a step besides the weights. The share of the peak counts 3 forward passes of
multiply-accumulates a step, against the fastest matrix product measured here in the same type.
"""

import argparse
import statistics
from pathlib import Path

import torch

from benchmarks.contenders import CLASSIC, OURS, draw_batch, make_own, make_peers, ours, plain, race, tabulate
from benchmarks.machine import SHORT, describe, head, matrix_peak
from tests.unetpp.network.classic import ClassicNestedUNet
from unetpp.training.loop import choose_precision

BATCHES = {96: 16, 256: 4, 512: 2}  # images of a step by side at --batch 16; others get about as many pixels


def losses_after(steps: int, seeds: int, widths: list[int], size: int, batch: int, device: torch.device) -> list[str]:
    """The training loss, the mean over the last five steps, of classic and ours on the same batches."""
    lines = ["| seed | " + " | ".join((CLASSIC, OURS)) + " |", "| --- | ---: | ---: |"]
    ends: dict[str, list[float]] = {CLASSIC: [], OURS: []}
    for seed in range(seeds):
        for name in ends:
            torch.manual_seed(seed)
            if name == CLASSIC:
                step = plain(ClassicNestedUNet(widths), torch.float32, device)
            else:
                step = ours(widths, device)
            seen = [step(*draw_batch(batch, size, 1000 * seed + n, device)).item() for n in range(steps)]
            ends[name].append(statistics.mean(seen[-5:]))
        lines.append(f"| {seed} | " + " | ".join(f"{ends[name][seed]:.4f}" for name in ends) + " |")
    means = [statistics.mean(values) for values in ends.values()]
    spreads = [max(values) - min(values) for values in ends.values()]
    for name, values in (("mean", means), ("spread", spreads)):
        lines.append(f"| {name} | " + " | ".join(f"{value:.4f}" for value in values) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, nargs="+", default=[16, 32], help="widths of level 0, doubled by level")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 256, 512])
    parser.add_argument("--batch", type=int, default=16, help="images of 96 px at --base 16; of more pixels, fewer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loss-steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    auto = choose_precision("auto", device)
    types = list(dict.fromkeys([torch.float32, auto]))
    bases, sizes = (" ".join(map(str, one)) for one in (args.base, args.sizes))
    command = (
        f"python -m benchmarks.train --base {bases} --sizes {sizes} --batch {args.batch} --rounds {args.rounds} "
        f"--loss-steps {args.loss_steps} --seeds {args.seeds}"
    )
    machine = f"{describe(device, types)} `precision: auto` means {SHORT[auto]} there."
    lines = head("A training step, against the classic implementation and the peers", command, machine)
    peaks = {dtype: matrix_peak(dtype, device) for dtype in types}
    missing: list[str] = []
    for base in args.base:
        widths = [base * 2**level for level in range(5)]
        for size in args.sizes:
            batch = max(1, (BATCHES.get(size) or 16 * 96**2 // size**2) * args.batch // max(16, base))
            torch.manual_seed(0)
            peers, missing = make_peers(widths, size, device)
            contenders = make_own(widths, size, device) | peers
            race(contenders, *draw_batch(batch, size, 0, device), args.rounds)
            title = f"## {size}x{size}, batches of {batch}, widths {' '.join(map(str, widths))}"
            lines += [title, "", *tabulate(contenders, batch, peaks), ""]
            print("\n".join(lines[-len(contenders) - 5 :]), flush=True)
    lines += [f"Not measured: {line}." for line in missing] + ([""] if missing else [])
    if args.seeds:
        size, widths = args.sizes[0], [args.base[0] * 2**level for level in range(5)]
        lines += [f"## Loss after {args.loss_steps} steps at {size}x{size}, batches of 8", ""]
        lines += losses_after(args.loss_steps, args.seeds, widths, size, 8, device)
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
