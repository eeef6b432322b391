"""How far a training step is from the limit that the hardware sets for its convolutions, and where the other time goes.

A convolution can take no less than its arithmetic by the measured matrix peak, nor than its bytes (inputs and weights
read once, output written once) by the measured bandwidth. The sum of the larger of the two, over the passes forward
and for both gradients, is the floor of a step; all else in a step only moves memory.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import Contender, draw_batch, ours, race
from benchmarks.gpu.scale import Scale
from benchmarks.machine import SHORT, matrix_peak, memory_bandwidth, say_rate
from unetpp import NestedUNet
from unetpp.training.loop import choose_precision

TARGET = 0.5
KINDS = {  # by a part of an operator's name, the first that fits
    "conv": "convolutions",
    "batch_norm": "batch norm",
    "upsample": "upsampling",
    "max_pool": "pooling",
    "::cat": "concatenation",
    "relu": "ReLU",
    "threshold": "ReLU",
    "adam": "optimizer",
    "norm": "gradient norm",
    "_foreach": "gradient norm",
    "copy": "copies, changes of type or layout",
    "add": "sums, those of gradients among them",
}


@dataclass(frozen=True)
class Pass:
    """One pass of one convolution: forward, or for the gradient of its input or its weights."""

    flops: float
    bytes: float

    def floor_s(self, peak: float, bandwidth: float) -> float:
        return max(self.flops / peak, self.bytes / bandwidth)

    def is_arithmetic(self, peak: float, bandwidth: float) -> bool:
        return self.flops / peak >= self.bytes / bandwidth


def find_passes(network: nn.Module, batch: int, size: int, itemsize: int) -> list[Pass]:
    """The passes of all convolutions of a training step; the image itself needs no gradient."""
    passes: list[Pass] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        flops = 2 * output.numel() * module.weight[0].numel()
        moved = itemsize * (inputs[0].numel() + module.weight.numel() + output.numel())
        passes.extend([Pass(flops, moved)] * (3 if passes else 2))

    network = network.to("meta").eval()  # shapes alone
    hooks = [one.register_forward_hook(note) for one in network.modules() if isinstance(one, nn.Conv2d)]
    network(torch.empty(batch, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    return passes


def compare_with_floor(scale: Scale) -> Iterator[str]:
    """The share of the floor, and the step by kinds of operators."""
    dtype, toy = choose_precision("auto", scale.device), scale.device.type == "cpu"
    peak = matrix_peak(dtype, scale.device, 256 if toy else None)
    bandwidth = memory_bandwidth(scale.device, 16 if toy else None)
    rates = f"{SHORT[dtype]} matrix products {say_rate(peak, 'FLOP')}, copies {say_rate(bandwidth, 'B')}"
    yield f"Measured: {rates} read and written. Target: a share of {TARGET:.0%}."
    yield ""
    yield (
        "| step | ms | floor of its convolutions, ms | share of it | of the floor by arithmetic | by memory "
        "| GPU busy |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    kinds: dict[int, dict[str, float]] = {}
    for size, batch in scale.sizes.items():
        passes = find_passes(NestedUNet(scale.widths), batch, size, dtype.itemsize)
        floor = sum(one.floor_s(peak, bandwidth) for one in passes)
        arithmetic = sum(one.floor_s(peak, bandwidth) for one in passes if one.is_arithmetic(peak, bandwidth))
        step = Contender(ours([*scale.widths], scale.device), dtype, 0)
        image, mask = draw_batch(batch, size, 0, scale.device)
        race({"ours": step}, image, mask, scale.rounds)
        kinds[size] = _profile(lambda step=step, image=image, mask=mask: step.step(image, mask), scale.device)
        busy = sum(kinds[size].values()) / step.median_s
        yield (
            f"| {size}x{size}, batches of {batch} | {1000 * step.median_s:.2f} | {1000 * floor:.3f} "
            f"| {floor / step.median_s:.0%} | {arithmetic / floor:.0%} | {1 - arithmetic / floor:.0%} | {busy:.0%} |"
        )
    yield from ("", "Where the busy time goes:", "")
    yield f"| kind | {' | '.join(f'{size}x{size}' for size in kinds)} |"
    yield f"| --- |{' ---: |' * len(kinds)}"
    largest = max(kinds.values(), key=lambda one: sum(one.values()))
    for kind in sorted(largest, key=lambda one: -largest[one]):
        shares = [f"{found.get(kind, 0) / sum(found.values()):.0%}" for found in kinds.values()]
        yield f"| {kind} | {' | '.join(shares)} |"


def _profile(step, device: torch.device, steps: int = 3) -> dict[str, float]:
    """Seconds of a step by kind of operator, on the device."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, acc_events=True) as prof:
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    seconds: dict[str, float] = defaultdict(float)
    for event in prof.key_averages():
        if event.device_type.name != "CPU":  # its kernels are counted with the operator that launched them
            continue
        micros = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        kind = next((kind for part, kind in KINDS.items() if part in event.key.lower()), "other")
        seconds[kind] += micros / 1e6 / steps
    return {kind: value for kind, value in seconds.items() if value > 0}
