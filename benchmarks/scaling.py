"""DistributedDataParallel at N GPUs, on paper: from measured gradients, when they are ready, and what links carry.

    python -m benchmarks.scaling --out docs/scaling.md        (writes what stands below the heading "The tables")

Measured here: which gradients fill which bucket, how many bytes each has, and at which share of the backward pass it is
ready (on a processor: the order is that of a GPU, the shares are about). Assumed, and printed: how long a step of one
GPU takes (multiply-accumulates against a share of its peak), and what a link carries of its nominal speed.

The buckets leave one after another over one link: each begins when it is ready and the one before is through. A ring
of N carries 2 (N - 1) / N of a bucket's bytes over every link, in 2 (N - 1) turns that cost a latency each. A step
ends with the later of the backward pass and the last bucket.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

from benchmarks.machine import describe
from unetpp import NestedUNet
from unetpp.network.profiling import count_macs
from unetpp.training.loop import make_loss

MIB = 2**20
HEADING = "## The tables"
PASSES = 3  # a backward pass costs two forward passes


@dataclass(frozen=True)
class Link:
    """Nominal bytes a second in one direction, the share of it that all-reduce gets, and the seconds of a turn."""

    name: str
    bytes_per_s: float
    share: float
    turn_s: float

    def all_reduce_s(self, size: float, world: int) -> float:
        """Seconds for so many bytes among so many processes by a ring."""
        return 2 * (world - 1) * (size / world / (self.bytes_per_s * self.share) + self.turn_s)


LINKS = (
    Link("NVLink 4 (H100)", 450e9, 0.75, 5e-6),
    Link("NVLink 3 (A100)", 300e9, 0.75, 5e-6),
    Link("PCIe 4 x16", 32e9, 0.6, 10e-6),
    Link("100 Gbit/s", 12.5e9, 0.8, 30e-6),
    Link("10 Gbit/s", 1.25e9, 0.8, 50e-6),
)


@dataclass(frozen=True)
class Bucket:
    """Bytes of fp32 gradients that travel together, and the share of the backward pass after which all are there."""

    size: int
    ready: float


def measure_buckets(network: NestedUNet, size: int, batch: int, rounds: int) -> list[Bucket]:
    """The buckets as DistributedDataParallel makes them after its first pass: in the order in which gradients come."""
    device = torch.device("cpu")
    loss = make_loss("ce_dice", "mean", network.depths)
    image, mask = torch.randn(batch, 3, size, size), torch.zeros(batch, size, size, dtype=torch.uint8)
    times: dict[nn.Parameter, list[float]] = {one: [] for one in network.parameters()}
    began = 0.0
    for parameter in times:
        parameter.register_post_accumulate_grad_hook(lambda one: times[one].append(time.perf_counter() - began))
    for _ in range(rounds + 1):
        network.zero_grad(set_to_none=True)
        total = loss(network.to(device)(image), mask).mean()
        began = time.perf_counter()
        total.backward()
    ready = {one: statistics.median(seconds[1:]) for one, seconds in times.items()}  # the first round warms up
    order = sorted(ready, key=ready.__getitem__)
    last = ready[order[-1]]
    groups, _ = dist._compute_bucket_assignment_by_size(order, [dist._DEFAULT_FIRST_BUCKET_BYTES, 25 * MIB])
    return [
        Bucket(sum(4 * order[at].numel() for at in group), max(ready[order[at]] for at in group) / last)
        for group in groups
    ]


def efficiency(buckets: list[Bucket], step_s: float, link: Link, world: int, halved: bool = False) -> float:
    """Speed at `world` GPUs with the same batch on each, as a share of `world` times the speed of one."""
    forward = step_s / PASSES
    backward, through = step_s - forward, 0.0
    for bucket in buckets:
        size = bucket.size / 2 if halved else bucket.size
        through = max(through, bucket.ready * backward) + link.all_reduce_s(size, world)
    return step_s / (forward + max(backward, through))


def make_tables(args: argparse.Namespace) -> list[str]:
    torch.manual_seed(0)
    network = NestedUNet(args.widths).train()
    macs = count_macs(NestedUNet(args.widths).eval(), torch.randn(1, 3, args.size, args.size))
    buckets = measure_buckets(network, args.measured_size, 2, args.rounds)
    total = sum(bucket.size for bucket in buckets)
    command = f"python -m benchmarks.scaling --widths {' '.join(map(str, args.widths))} --size {args.size}"
    lines = [
        f"`{command} --peak-tflops {args.peak_tflops:g} --share {args.share:g}`",
        "",
        f"Network: widths {', '.join(map(str, args.widths))}, {total / 4 / 1e6:.2f} million parameters, "
        f"{total / MIB:.1f} MiB of fp32 gradients, {macs / 1e9:.1f} GMAC for the forward pass of an image of "
        f"{args.size}x{args.size}. Buckets: {describe()}",
        "",
        "| bucket | MiB | ready after this share of the backward pass |",
        "| ---: | ---: | ---: |",
        *(f"| {n} | {one.size / MIB:.2f} | {one.ready:.0%} |" for n, one in enumerate(buckets, start=1)),
        "",
        "| link | nominal GB/s, one way | taken | latency of a turn |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {one.name} | {one.bytes_per_s / 1e9:g} | {one.share:.0%} | {one.turn_s * 1e6:g} us |" for one in LINKS),
        "",
    ]
    for batch in args.batches:
        step_s = 2 * PASSES * macs * batch / (args.peak_tflops * 1e12 * args.share)
        lines += [
            f"Batch {batch} on each GPU: a step of {step_s * 1e3:.1f} ms ({batch / step_s:.0f} images/s) on one GPU at "
            f"{args.share:.0%} of {args.peak_tflops:g} TFLOP/s. Speed at N GPUs, as a share of N times one:",
            "",
            f"| link | {' | '.join(f'{world} GPUs' for world in args.worlds)} | "
            f"{args.worlds[-1]} GPUs, compress_gradients: bf16 |",
            "| --- |" + " ---: |" * (len(args.worlds) + 1),
        ]
        for link in LINKS:
            cells = [f"{efficiency(buckets, step_s, link, world):.1%}" for world in args.worlds]
            cells.append(f"{efficiency(buckets, step_s, link, args.worlds[-1], halved=True):.1%}")
            lines.append(f"| {link.name} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--size", type=int, default=256, help="px, of the images that are trained on")
    parser.add_argument("--measured-size", type=int, default=128, help="px, of those that gradients are timed with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 64], help="images on each GPU")
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4, 8, 16, 64])
    parser.add_argument("--peak-tflops", type=float, default=312, help="of the GPU in bf16; 312 is an A100's")
    parser.add_argument("--share", type=float, default=0.3, help="of it that a step reaches")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = "\n".join(make_tables(args))
    print(text)
    if args.out:
        before = args.out.read_text(encoding="utf-8").partition(HEADING)[0]
        args.out.write_text(f"{before}{HEADING}\n\n{text.rstrip()}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
