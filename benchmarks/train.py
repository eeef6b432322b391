"""A training step: the classic implementation and the peers against ours, interleaved in one process.

    python -m benchmarks.train --out benchmarks/train.md

The classic one is the same network written from the definition, as it is commonly run: eager, fp32, NCHW. The peers
are segmentation_models.pytorch's UnetPlusPlus and MONAI's BasicUNetPlusPlus, where they can be imported; they are
other networks of that name, so that their multiply-accumulates stand beside their speed. Ratios are of medians over
interleaved rounds. Peak memory is what torch holds at once in a step beside the weights. The share of the peak counts
3 forward passes of multiply-accumulates a step, against the fastest matrix product measured here in the same type.
"""

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tests.unetpp.network.classic import ClassicNestedUNet
from unetpp import NestedUNet
from unetpp.data.scaling import standardise
from unetpp.network.profiling import count_macs
from unetpp.training.loop import choose_precision, make_loss, make_optimizer
from unetpp.training.step import TrainStep

MIB = 2**20
BATCHES = {96: 16, 256: 4, 512: 2}  # images of a step by side; others get as many as hold about as many pixels
CLASSIC, OURS = "classic, fp32, NCHW", "ours, auto"


@dataclass
class Contender:
    """One way to make a step, and what was measured of it."""

    step: Callable[[Tensor, Tensor], Tensor]
    dtype: torch.dtype
    macs: int
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0


def plain(network: nn.Module, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The step that everybody writes."""
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)

    def step(image: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = network(image)
        logits = tuple(logits) if isinstance(logits, list | tuple) else (logits,)
        loss = make_loss("ce_dice", "mean", range(1, len(logits) + 1))(logits, mask).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def ours(widths: list[int], device: torch.device, precision: str = "auto", levels: int = 0):
    """The step of the train stage."""
    network = NestedUNet(widths).train()
    network.checkpoint_levels = levels
    network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(network, "adamw", 1e-3, 0.9, 0.01)
    loss = make_loss("ce_dice", "mean", network.depths)
    step = TrainStep(network, optimizer, loss, device, choose_precision(precision, device))
    return lambda image, mask: step(image, mask, len(mask), 1e-3, 0, 0)[0] / len(mask)


def make_contenders(widths: list[int], size: int, device: torch.device) -> tuple[dict[str, Contender], list[str]]:
    """By name; and which peers are missing, and why."""
    one = torch.randn(1, 3, size, size)
    auto = choose_precision("auto", device)
    found, missing = {}, []

    def add(name: str, step, dtype: torch.dtype, network: nn.Module) -> None:
        found[name] = Contender(step, dtype, count_macs(network.cpu().eval(), one))

    of_ours = NestedUNet(widths)
    network = ClassicNestedUNet(widths)
    add(CLASSIC, None, torch.float32, network)
    found[CLASSIC].step = plain(network, torch.float32, device)
    if auto != torch.float32:
        name = f"classic, autocast {short(auto)}, NCHW"
        add(name, plain(ClassicNestedUNet(widths), auto, device), auto, of_ours)
    for title, make in (
        ("segmentation_models.pytorch UnetPlusPlus (resnet34)", smp),
        ("MONAI BasicUNetPlusPlus", monai),
    ):
        try:
            network = make(widths)
        except Exception as error:
            missing.append(f"{title}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            continue
        add(f"{title}, fp32, NCHW", None, torch.float32, network)
        found[f"{title}, fp32, NCHW"].step = plain(network, torch.float32, device)
    add("ours, fp32", ours(widths, device, "fp32"), torch.float32, of_ours)
    add(OURS, ours(widths, device), auto, of_ours)
    add("ours, auto, checkpoint_levels 1", ours(widths, device, levels=1), auto, of_ours)
    return found, missing


def smp(widths: list[int]) -> nn.Module:
    import segmentation_models_pytorch

    decoder = widths[::-1]
    return segmentation_models_pytorch.UnetPlusPlus("resnet34", encoder_weights=None, decoder_channels=decoder)


def monai(widths: list[int]) -> nn.Module:
    from monai.networks.nets import BasicUNetPlusPlus

    return BasicUNetPlusPlus(2, 3, 1, (*widths, widths[0]), deep_supervision=True)


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def peak_memory_mib(step: Callable[[], Tensor], device: torch.device) -> float:
    """The most that torch holds at once in a step beside what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it greets on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    recorded = prof.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = sorted(
        (event for event in recorded.events() if event.name() == "[memory]"), key=lambda one: one.start_ns()
    )
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak / MIB


def matmul_peak(dtype: torch.dtype, device: torch.device, side: int = 2048) -> float:
    """Floating-point operations a second of the fastest of some matrix products."""
    one = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        one @ one
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def draw_batch(num: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bright and dark discs on noise: something that 50 steps can learn."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    masks = np.zeros((num, size, size), np.uint8)
    images = rng.normal(0.4, 0.1, (num, 3, size, size)).astype(np.float32)
    for mask, image in zip(masks, images, strict=True):
        for _ in range(6):
            (y, x), radius = rng.integers(0, size, 2), rng.uniform(0.05, 0.15) * size
            mask |= ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).astype(np.uint8)
        image += mask * rng.uniform(0.1, 0.3)
    return standardise(torch.from_numpy(images)), torch.from_numpy(masks)


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
            seen = [step(*to(draw_batch(batch, size, 1000 * seed + n), device)).item() for n in range(steps)]
            ends[name].append(statistics.mean(seen[-5:]))
        lines.append(f"| {seed} | " + " | ".join(f"{ends[name][seed]:.4f}" for name in ends) + " |")
    spread = {name: (max(values) - min(values)) for name, values in ends.items()}
    means = {name: statistics.mean(values) for name, values in ends.items()}
    lines.append("| mean | " + " | ".join(f"{means[name]:.4f}" for name in ends) + " |")
    lines.append("| spread | " + " | ".join(f"{spread[name]:.4f}" for name in ends) + " |")
    return lines


def to(batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    return batch[0].to(device), batch[1].to(device)


def measure(
    widths: list[int], size: int, rounds: int, device: torch.device, peaks: dict
) -> tuple[list[str], list[str]]:
    """The table of one size; and the peers that are missing."""
    batch = BATCHES.get(size) or max(1, 16 * 96**2 // size**2)
    torch.manual_seed(0)
    contenders, missing = make_contenders(widths, size, device)
    image, mask = to(draw_batch(batch, size, 0), device)
    for contender in contenders.values():
        contender.step(image, mask)  # warms up
        contender.peak_mib = peak_memory_mib(lambda step=contender.step: step(image, mask), device)
        gc.collect()
    for _ in range(rounds):
        for contender in contenders.values():
            began = time.perf_counter()
            contender.step(image, mask)
            if device.type == "cuda":
                torch.cuda.synchronize()
            contender.seconds.append(time.perf_counter() - began)
    classic = contenders[CLASSIC]
    lines = [
        f"## {size}x{size}, batches of {batch}",
        "",
        "| step | images/s | slowest to fastest | times the classic | peak memory | of the classic's | GMACs an image "
        "| of the matrix peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in contenders.items():
        rates = sorted(batch / value for value in one.seconds)
        median = statistics.median(one.seconds)
        share = 3 * 2 * one.macs * batch / median / peaks[one.dtype]
        lines.append(
            f"| {name} | {batch / median:.2f} | {rates[0]:.2f} to {rates[-1]:.2f} "
            f"| {statistics.median(classic.seconds) / median:.2f} | {one.peak_mib:.0f} MiB "
            f"| {one.peak_mib / classic.peak_mib:.0%} | {one.macs / 1e9:.2f} | {share:.0%} |"
        )
    return [*lines, ""], missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs=5, default=[16, 32, 64, 128, 256])
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 256, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loss-steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    auto = choose_precision("auto", device)
    peaks = {dtype: matmul_peak(dtype, device) for dtype in {torch.float32, auto}}
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {args.threads} threads"
    lines = [
        "# A training step, against the classic implementation and the peers",
        "",
        f"`python -m benchmarks.train --widths {' '.join(map(str, args.widths))} --sizes "
        f"{' '.join(map(str, args.sizes))} --rounds {args.rounds} --threads {args.threads} --loss-steps "
        f"{args.loss_steps} --seeds {args.seeds}`",
        "",
        f"Read on {where}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__.split('+')[0]}, load "
        f"average {load:.1f} before the start (0 is an idle machine); `precision: auto` means {short(auto)} there. "
        "Matrix peaks: " + ", ".join(f"{short(dtype)} {peak / 1e9:.0f} GFLOP/s" for dtype, peak in peaks.items()) + ".",
        "",
    ]
    missing: list[str] = []
    for size in args.sizes:
        table, missing = measure(args.widths, size, args.rounds, device, peaks)
        lines += table
    lines += [f"Not measured: {line}." for line in missing] + ([""] if missing else [])
    size = args.sizes[0]
    lines += [f"## Loss after {args.loss_steps} steps at {size}x{size}, batches of 8", ""]
    lines += losses_after(args.loss_steps, args.seeds, args.widths, size, 8, device)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
