"""The deepest depth whose measured time on this machine fits a budget, and what a queue leaves of one."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import numpy as np

from unetpp.engines.engine import Engine
from unetpp.inference.tiles import TILE_PX, predict_image, spans, tile_sides, to_mask

ROUNDS = 5
MAX_S = 2.0  # of all rounds after the first pair; larger networks are measured in fewer
MEASURED_PX = 512  # larger images take as much a pixel as one of this side: no cache holds either
NEAR = 1.25  # what was measured counts for images of up to so many times, and parts, of its pixels


WorkOn = Callable[[np.ndarray], Callable[[Engine], object]]


def measure_times(
    engines: Mapping[int, Engine], size: tuple[int, int], rounds: int = ROUNDS, *, work_on: WorkOn | None = None
) -> dict[int, float]:
    """Milliseconds from an image of this height and width to its mask, by an engine of each depth.

    Args:
        work_on: makes of an image (H, W, C) uint8 what is timed instead.
    """
    about = next(iter(engines.values())).about
    image = example(measured_size(about.frame is not None, size), about.in_channels)

    def answer(engine: Engine) -> None:
        to_mask(predict_image(engine, image)[None], about.num_classes, about.multilabel)

    work = work_on(image) if work_on else answer
    times = median_times({depth: partial(work, engine) for depth, engine in engines.items()}, rounds)
    return {depth: taken * growth(engines[depth], size) for depth, taken in times.items()}


def deepest_within(times: Mapping[int, float], max_ms: float) -> int | None:
    """The deepest depth that takes at most `max_ms`; None where none does."""
    return max((depth for depth, taken in times.items() if taken <= max_ms), default=None)


def share_of_queue(queue: Sequence[tuple[float, int]], least_ms: float) -> float:
    """Milliseconds that an image may take so that all who wait are in time, where each takes as much.

    Args:
        queue: of each request in its order, the first being answered: milliseconds that it has left, and images.
        least_ms: of the shallowest depth. For whom even that is too late, nobody hurries.
    """
    first, *behind = (left / (place + images) for place, (left, images) in enumerate(queue))
    return min([first, *(share for share in behind if share >= least_ms)])


class TimesBySize:
    """Times by depth of images of any size: measured once for a size, then kept for those that are near it.

    Args:
        measure: milliseconds by depth for a height and width.
        resized: whether all images are brought to one size, so that time hardly grows with their own.
    """

    def __init__(self, measure: Callable[[tuple[int, int]], dict[int, float]], resized: bool):
        self._measure, self._resized = measure, resized
        self._known: dict[int, dict[int, float]] = {}  # by number of pixels

    def __call__(self, size: tuple[int, int]) -> dict[int, float]:
        """Milliseconds by depth. Call it where nothing else computes: it may measure."""
        pixels = size[0] * size[1]
        nearest = min(self._known, key=lambda known: max(known / pixels, pixels / known), default=None)
        if nearest is None or max(nearest / pixels, pixels / nearest) > NEAR:
            nearest, self._known[pixels] = pixels, self._measure(size)
        factor = 1.0 if self._resized else pixels / nearest
        return {depth: taken * factor for depth, taken in self._known[nearest].items()}


def median_times(works: Mapping[int, Callable[[], object]], rounds: int = ROUNDS) -> dict[int, float]:
    """Milliseconds of each, in turns; the first pass warms it up, and after `MAX_S` the rounds end."""
    found: dict[int, list[float]] = {depth: [] for depth in works}
    end = None
    for _ in range(rounds + 1):
        for depth, work in works.items():
            began = time.perf_counter()
            work()
            found[depth].append((time.perf_counter() - began) * 1000)
        end = end or time.perf_counter() + MAX_S
        if time.perf_counter() > end:
            break
    return {depth: median(times[1:] or times) for depth, times in found.items()}


def measured_size(resized: bool, size: tuple[int, int]) -> tuple[int, int]:
    """The size at which times of images of this size are measured: their own up to `MEASURED_PX` squared."""
    side = MEASURED_PX * 2 if resized else MEASURED_PX
    return size if size[0] * size[1] <= side**2 else (side, side)


def growth(engine: Engine, size: tuple[int, int]) -> float:
    """How many times as long an image of a size takes as one of its `measured_size`; tiles overlap."""
    if engine.about.frame is not None or size[0] * size[1] <= MEASURED_PX**2:
        return 1.0
    tile, halo, fade = tile_sides(engine)
    height, width = size
    if max(size) > TILE_PX and engine.takes_parts:
        height, width = (
            sum(len(weights) for _, weights in spans(side, tile, halo, fade, 2**engine.about.depth)) for side in size
        )
    return height * width / MEASURED_PX**2


def example(size: tuple[int, int], channels: int) -> np.ndarray:
    """An image (H, W, channels) uint8 with spots of some pixels."""
    rows, columns = (-(-side // 8) for side in size)
    spots = np.random.default_rng(0).integers(0, 256, (rows, columns, channels), np.uint8)
    return np.ascontiguousarray(spots.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]])
