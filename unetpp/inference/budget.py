"""The deepest depth whose measured time on this machine fits a budget, and the share of a budget in a queue."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import numpy as np

from unetpp.engines.engine import Engine
from unetpp.inference.tiles import TILE_PX, predict_image, spans, tile_sides, to_mask

ROUNDS = 5
MAX_S = 2.0  # for all rounds after the first pair; larger networks get fewer rounds
MEASURED_PX = 512  # the time per pixel no longer changes above this side: caches are too small for either
NEAR = 1.25  # a measurement also applies to images with up to this factor more or fewer pixels


WorkOn = Callable[[np.ndarray], Callable[[Engine], object]]


def measure_times(
    engines: Mapping[int, Engine], size: tuple[int, int], rounds: int = ROUNDS, *, work_on: WorkOn | None = None
) -> dict[int, float]:
    """Milliseconds from an image of this height and width to its mask, by depth.

    Args:
        work_on: turns an image (H, W, C) uint8 into a function of the engine that is timed instead.
    """
    about = next(iter(engines.values())).about
    image = example(measured_size(about.frame is not None, size), about.in_channels)

    def answer(engine: Engine) -> None:
        to_mask(predict_image(engine, image)[None], about.num_classes, about.multilabel)

    work = work_on(image) if work_on else answer
    times = median_times({depth: partial(work, engine) for depth, engine in engines.items()}, rounds)
    return {depth: taken * growth(engines[depth], size) for depth, taken in times.items()}


def deepest_within(times: Mapping[int, float], max_ms: float) -> int | None:
    """The deepest depth that takes at most `max_ms`; None if there is none."""
    return max((depth for depth, taken in times.items() if taken <= max_ms), default=None)


def share_of_queue(queue: Sequence[tuple[float, int]], least_ms: float) -> float:
    """Milliseconds that each image may take if all requests in the queue are to be in time, the same for every image.

    Args:
        queue: for each request in order, beginning with the one being answered: remaining milliseconds, and images.
        least_ms: time of the shallowest depth. A request that is too late even with this is not hurried for.
    """
    first, *behind = (left / (place + images) for place, (left, images) in enumerate(queue))
    return min([first, *(share for share in behind if share >= least_ms)])


class TimesBySize:
    """Times by depth for images of any size: measured once, then reused for similar sizes.

    Args:
        measure: returns milliseconds by depth for a height and width.
        resized: whether all images are resized to one size, so that time hardly depends on their own size.
    """

    def __init__(self, measure: Callable[[tuple[int, int]], dict[int, float]], resized: bool):
        self._measure, self._resized = measure, resized
        self._known: dict[int, dict[int, float]] = {}  # by number of pixels

    def __call__(self, size: tuple[int, int]) -> dict[int, float]:
        """Milliseconds by depth. This may measure, so call it while nothing else computes."""
        pixels = size[0] * size[1]
        nearest = min(self._known, key=lambda known: max(known / pixels, pixels / known), default=None)
        if nearest is None or max(nearest / pixels, pixels / nearest) > NEAR:
            nearest, self._known[pixels] = pixels, self._measure(size)
        factor = 1.0 if self._resized else pixels / nearest
        return {depth: taken * factor for depth, taken in self._known[nearest].items()}


def median_times(works: Mapping[int, Callable[[], object]], rounds: int = ROUNDS) -> dict[int, float]:
    """Median milliseconds of each function, run in turns after a warm-up pass; rounds end after `MAX_S`."""
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
    """The size at which images of this size are timed: their own, up to `MEASURED_PX` squared."""
    side = MEASURED_PX * 2 if resized else MEASURED_PX
    return size if size[0] * size[1] <= side**2 else (side, side)


def growth(engine: Engine, size: tuple[int, int]) -> float:
    """How many times longer an image of a size takes than one of its `measured_size`, including overlaps of tiles."""
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
