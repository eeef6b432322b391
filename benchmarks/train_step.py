"""Images a second of a training step: the classic implementation against ours, interleaved in one process.

    python -m benchmarks.train_step --out benchmarks/train_step.md

The classic one is the same network written from the definition, as it is commonly run: eager, fp32, NCHW.
Ours are fp32 and bf16 in channels_last. Ratios are of medians over the interleaved rounds.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch

from tests.unetpp.classic import ClassicNestedUNet
from unetpp import NestedUNet
from unetpp.loop import choose_precision
from unetpp.losses import deep_supervision_loss


def make_step(network, image, mask, dtype):
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            logits = tuple(network(image))
        optimizer.zero_grad(set_to_none=True)
        deep_supervision_loss(logits, mask).mean().backward()
        optimizer.step()
        if image.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs=5, default=[16, 32, 64, 128, 256])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    image = torch.randn(args.batch, 3, args.size, args.size, device=device)
    mask = torch.randint(0, 2, (args.batch, args.size, args.size), device=device)
    last = image.contiguous(memory_format=torch.channels_last)

    def ours():
        return NestedUNet(args.widths).to(device).to(memory_format=torch.channels_last)

    steps = {
        "classic, fp32, NCHW": make_step(ClassicNestedUNet(args.widths).to(device), image, mask, torch.float32),
        "ours, fp32, channels_last": make_step(ours(), last, mask, torch.float32),
        "ours, bf16, channels_last": make_step(ours(), last, mask, torch.bfloat16),
    }
    for step in steps.values():
        step()
    times = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(step())
    classic = statistics.median(times["classic, fp32, NCHW"])
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {args.threads} threads"
    capability = torch.backends.cpu.get_cpu_capability()
    lines = [
        "# A training step, against the classic implementation",
        "",
        f"`python -m benchmarks.train_step --widths {' '.join(map(str, args.widths))} --size {args.size} "
        f"--batch {args.batch} --rounds {args.rounds} --threads {args.threads}`",
        "",
        f"Read on {where}, {capability}, torch {torch.__version__.split('+')[0]}; "
        f"`precision: auto` means {str(choose_precision('auto', device)).removeprefix('torch.')} there.",
        "",
        "| step | images/s (median) | slowest to fastest | times the classic |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, values in times.items():
        rates = sorted(args.batch / value for value in values)
        lines.append(
            f"| {name} | {args.batch / statistics.median(values):.1f} | {rates[0]:.1f} to {rates[-1]:.1f} "
            f"| {classic / statistics.median(values):.2f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
