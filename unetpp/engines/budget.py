"""The deepest depth whose measured time on this machine fits a budget."""

import time
from collections.abc import Mapping
from statistics import median

import numpy as np

from unetpp.engines.engine import Engine


def measure_times(engines: Mapping[int, Engine], size: tuple[int, int], rounds: int = 5) -> dict[int, float]:
    """Milliseconds that an engine of each depth takes for one image of this height and width."""
    channels = next(iter(engines.values())).about.in_channels
    image = np.random.default_rng(0).random((1, channels, *size), np.float32)
    found: dict[int, list[float]] = {depth: [] for depth in engines}
    for number in range(rounds + 1):
        for depth, engine in engines.items():
            began = time.perf_counter()
            engine(image)
            if number:  # the first pass warms it up
                found[depth].append((time.perf_counter() - began) * 1000)
    return {depth: median(times) for depth, times in found.items()}


def deepest_within(times: Mapping[int, float], max_ms: float) -> int | None:
    """The deepest depth that takes at most `max_ms`; None where none does."""
    return max((depth for depth, taken in times.items() if taken <= max_ms), default=None)
