"""The cost of running a network: parameters, multiply-accumulates, latency, throughput, memory of a pass.

The caller sets eval mode, device and number of threads.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from unetpp.network.model import Block, NestedUNet

MIB = 2**20
WARMUP_S = 5.0  # after this time, warm-up ends
QUICK_S = 5.0  # for this time rounds are always measured, because they cost little
PRECISE = 0.03  # half-width of the interval of a median, at which measuring ends
LEAST_ROUNDS = 3
NEEDED = {95: 20, 99: 100}  # by percentile, the number of rounds that it needs


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass over the measured rounds; None for a percentile that needs more rounds."""

    median_ms: float
    p95_ms: float | None
    p99_ms: float | None
    spread: float  # interquartile range as a share of the median: how noisy the machine was
    half_width: float  # of the 95 % interval of the median, as a share of the median
    rounds: int
    ended: str  # why measuring ended: "rounds", "precise" or "time"


@dataclass(frozen=True, order=True)
class Throughput:
    """The highest number of images per second, its batch size, and the largest batch size that was tried."""

    images_per_s: float
    batch: int
    largest: int = field(default=0, compare=False)


def count_parameters(module: nn.Module) -> int:
    """The number of trainable parameters; buffers such as batch norm's running statistics are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of the convolutions and matrix products in one forward pass on `example` (N, C, H, W).

    They are nearly all of the arithmetic of these networks; norms, activations, pooling and upsampling are
    not counted. torch counts 2 floating-point operations per multiply-accumulate, hence the half.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    return counter.get_total_flops() // 2


def measure_latency(
    modules: Mapping[str, nn.Module],
    example: Tensor,
    rounds: int,
    warmup: int = 3,
    watch: Callable[[range], Iterable[int]] = iter,
    max_s: float | None = None,
) -> dict[str, Latency]:
    """Time one forward pass of each module on `example` (N, C, H, W).

    A round runs every module once, so that a temporary slowdown of the machine affects all of them, and their ratios
    stay valid. The first `warmup` rounds are not counted. `watch` may show progress.

    Args:
        rounds: the maximum number of rounds.
        max_s: measuring ends earlier if it would exceed this many seconds, or after `QUICK_S` seconds if every median
            is known to `PRECISE`; None measures all rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in modules}

    def measure_round() -> float:
        took = [_time(module, example) for module in modules.values()]
        for times, one in zip(seconds.values(), took, strict=True):
            times.append(one)
        return sum(took)

    spent, took, ended = 0.0, 0.0, "rounds"
    with torch.inference_mode():
        for _ in range(warmup):
            if max_s is None or spent < WARMUP_S:
                took = measure_round()
                spent += took
        for times in seconds.values():
            times.clear()
        planned = rounds
        if max_s is not None and took * rounds > max_s:
            planned, ended = min(rounds, max(LEAST_ROUNDS, int(max_s / took))), "time"
        spent = 0.0
        for number in watch(range(planned)):
            spent += measure_round()
            if max_s is None or number + 1 == planned:
                continue
            if number + 1 >= LEAST_ROUNDS and spent > max_s:
                ended = "time"
                break
            if number + 1 >= NEEDED[95] and spent > QUICK_S and max(map(_half_width, seconds.values())) <= PRECISE:
                ended = "precise"
                break
    return {name: _summarise(np.array(times) * 1000, ended) for name, times in seconds.items()}


def _half_width(times: Sequence[float] | np.ndarray) -> float:
    """Half-width of the 95 % interval of a median, as a share of it; from ranks, so valid for any distribution."""
    ordered, reach = np.sort(times), 1.96 * len(times) ** 0.5 / 2
    low, high = int(len(times) / 2 - reach), int(np.ceil(len(times) / 2 + reach))
    return float((ordered[min(high, len(times) - 1)] - ordered[max(0, low - 1)]) / 2 / np.median(ordered))


def _summarise(ms: np.ndarray, ended: str) -> Latency:
    low, median, high = np.percentile(ms, [25, 50, 75]).tolist()
    p95, p99 = (float(np.percentile(ms, one)) if len(ms) >= NEEDED[one] else None for one in NEEDED)
    return Latency(median, p95, p99, (high - low) / median, _half_width(ms), len(ms), ended)


def find_best_batch(
    modules: Mapping[str, nn.Module],
    example: Tensor,
    max_batch: int,
    rounds: int = 3,
    watch: Callable[[range], Iterable[int]] = iter,
    max_s: float | None = None,
) -> dict[str, Throughput]:
    """The best throughput of each module over batches of 1, 2, 4 ... `max_batch` copies of `example` (1, C, H, W).

    Images per second are the batch size divided by the median time of a pass, with the modules interleaved. The search
    ends when a batch is not faster for any module, does not fit into a GPU's memory, or would exceed `max_s` seconds in
    total.
    """
    best: dict[str, Throughput] = {}
    size, largest, spent = 1, 1, 0.0
    while size <= max_batch:
        try:
            latency = measure_latency(modules, example.repeat(size, 1, 1, 1), rounds, warmup=1, watch=watch)
        except torch.cuda.OutOfMemoryError:
            break
        largest = size
        found = {name: Throughput(size / each.median_ms * 1000, size) for name, each in latency.items()}
        better = {name: one for name, one in found.items() if name not in best or one > best[name]}
        if not better:
            break
        best |= better
        took = sum(each.median_ms for each in latency.values()) / 1000 * (rounds + 1)
        spent += took
        if max_s is not None and spent + 2 * took > max_s:
            break
        size *= 2
    return {name: replace(one, largest=largest) for name, one in best.items()}


def measure_peak_memory_mib(module: nn.Module, example: Tensor, device: torch.device | None = None) -> float:
    """Peak memory of one forward pass beyond the weights and `example`, in MiB.

    Measured, including the output and the operators' workspaces: on a CPU from what torch's allocator reports to the
    profiler (libraries that allocate without torch are not seen), on CUDA from its own peak counter.

    Args:
        device: where the pass is computed; by default the device of the example.
    """
    device = device or example.device
    with torch.inference_mode():
        module(example)  # allocates what is made only once, such as cuDNN's plans
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            module(example)
            torch.cuda.synchronize(device)
            return (torch.cuda.max_memory_allocated(device) - before) / MIB
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it prints a greeting on stderr
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
    """Memory of a training step in fp32 with Adam, in MiB: an estimate that tests compare with torch's own count.

    For the backward pass each node keeps its input, the upsampled map, and two convolutions and two norms, each as
    large as its output; an encoder keeps the output of each layer. All of this is proportional to batch size and
    pixels. Weights, gradients and Adam's two moments are four values per parameter. Libraries and the device (some
    hundred MiB on CUDA) need more; with bf16 nearly half remains.
    """
    pixels = size**2 if isinstance(size, int) else math.prod(size)
    numbers = network.pyramid.count_outputs(network.in_channels) if network.pyramid else 0.0  # a pixel of the image
    for name, node in network.nodes.items():
        assert isinstance(node, Block)
        level, position = map(int, name.split("_"))
        kept = node.conv1.in_channels + 4 * node.conv1.out_channels
        upsampled = network.channels[level + 1, position - 1] if position else 0
        numbers += (kept + upsampled) / 4**level
    return 4 * (numbers * batch_size * pixels + 4 * count_parameters(network)) / MIB


def _time(module: nn.Module, example: Tensor) -> float:
    """Seconds of one forward pass; a GPU computes asynchronously, so it is synchronised before and after."""
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    start = time.perf_counter()
    module(example)
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    return time.perf_counter() - start
