"""What a network costs to run: parameters, multiply-accumulates, latency, throughput, memory of a pass.

The module is run as it is given: eval mode, device and number of threads are the caller's.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from unetpp.network.model import Block, NestedUNet

MIB = 2**20


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass over the measured rounds."""

    median_ms: float
    p95_ms: float
    p99_ms: float
    spread: float  # the middle half of the rounds, as a share of the median: how noisy the machine was


@dataclass(frozen=True, order=True)
class Throughput:
    """The most images a second, and the batch size that gave them."""

    images_per_s: float
    batch: int


def count_parameters(module: nn.Module) -> int:
    """The numbers that training learns; buffers such as batch norm's running statistics are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of the convolutions of one forward pass on `example` (N, C, H, W).

    They are nearly all of the arithmetic of these networks; norms, activations, pooling and upsampling are
    not counted. torch counts 2 floating-point operations a multiply-accumulate, hence the half.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for operator, flops in counts.items() if "conv" in str(operator)) // 2


def measure_latency(
    modules: Mapping[str, nn.Module],
    example: Tensor,
    rounds: int,
    warmup: int = 3,
    watch: Callable[[range], Iterable[int]] = iter,
) -> dict[str, Latency]:
    """Time one forward pass of each module on `example` (N, C, H, W).

    A round runs every module once, so that what slows the machine for a while slows all of them, and
    their ratios stay true. The first `warmup` rounds are not counted. `watch` may show the rounds as they pass.
    """
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    with torch.inference_mode():
        for _ in watch(range(warmup + rounds)):
            for name, module in modules.items():
                seconds[name].append(_time(module, example))
    counted = {name: np.array(times[warmup:]) * 1000 for name, times in seconds.items()}
    return {name: _summarise(ms) for name, ms in counted.items()}


def _summarise(ms: np.ndarray) -> Latency:
    low, median, high, p95, p99 = np.percentile(ms, [25, 50, 75, 95, 99]).tolist()
    return Latency(median, p95, p99, (high - low) / median)


def find_best_batch(
    modules: Mapping[str, nn.Module], example: Tensor, max_batch: int, rounds: int = 3
) -> dict[str, Throughput]:
    """The best throughput of each module over batches of 1, 2, 4 ... `max_batch` copies of `example` (1, C, H, W).

    Images a second are the batch size by the median time of a pass, with the modules interleaved. The search ends
    where a batch is faster for none of them, or does not fit into a GPU's memory.
    """
    best: dict[str, Throughput] = {}
    size = 1
    while size <= max_batch:
        try:
            latency = measure_latency(modules, example.repeat(size, 1, 1, 1), rounds, warmup=1)
        except torch.cuda.OutOfMemoryError:
            break
        found = {name: Throughput(size / each.median_ms * 1000, size) for name, each in latency.items()}
        better = {name: one for name, one in found.items() if name not in best or one > best[name]}
        if not better:
            break
        best |= better
        size *= 2
    return best


def measure_peak_memory_mib(module: nn.Module, example: Tensor) -> float:
    """The most memory that one forward pass holds at once beyond the weights and `example`, in MiB.

    Measured, with the output and the workspaces of the operators in it: on a CPU from what torch's allocator
    reports to the profiler (a library that allocates past torch is not seen), on CUDA from its own high mark.
    """
    with torch.inference_mode():
        module(example)  # what is made once, such as cuDNN's plans, is no part of a pass
        if example.is_cuda:
            torch.cuda.synchronize(example.device)
            before = torch.cuda.memory_allocated(example.device)
            torch.cuda.reset_peak_memory_stats(example.device)
            module(example)
            torch.cuda.synchronize(example.device)
            return (torch.cuda.max_memory_allocated(example.device) - before) / MIB
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it greets on stderr
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
            module(example)
    assert prof.profiler is not None
    recorded = prof.profiler.kineto_results
    assert recorded is not None
    events = [event for event in recorded.events() if event.name() == "[memory]"]
    ordered = sorted(events, key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in ordered]  # pyright: ignore[reportAttributeAccessIssue] - no stub
    return int(np.cumsum([0, *changes]).max()) / MIB


def estimate_training_mib(network: NestedUNet, batch_size: int, size: int | tuple[int, int]) -> float:
    """Memory of a training step in fp32 with Adam, in MiB: a model, checked against torch's own count in the tests.

    Each node keeps for the backward pass what goes in, what was upsampled for it, and two convolutions and two
    norms, each as large as what comes out; all depends on batch and pixels in proportion. Weights, their gradients
    and Adam's two moments are four numbers a parameter. Libraries and the processor's or GPU's own share (some
    hundred MiB on CUDA) come on top; bf16 keeps nearly half of it.
    """
    pixels = size**2 if isinstance(size, int) else math.prod(size)
    numbers = 0.0  # a pixel of the image
    for name, node in network.nodes.items():
        assert isinstance(node, Block)
        level, position = map(int, name.split("_"))
        kept = node.conv1.in_channels + 4 * node.conv1.out_channels
        upsampled = network.widths[level + 1] if position else 0
        numbers += (kept + upsampled) / 4**level
    return 4 * (numbers * batch_size * pixels + 4 * count_parameters(network)) / MIB


def _time(module: nn.Module, example: Tensor) -> float:
    """Seconds of one forward pass; a GPU runs behind the call, so it is waited for on both sides."""
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    start = time.perf_counter()
    module(example)
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    return time.perf_counter() - start
