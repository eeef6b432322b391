"""The depth by a budget: what is measured, for which sizes it counts, and what a queue leaves."""

import math

import numpy as np
import pytest

from unetpp.images.frame import Frame
from unetpp.inference import budget
from unetpp.inference.budget import TimesBySize, deepest_within, median_times, share_of_queue
from unetpp.models.about import About


class Slow:
    """An engine that takes what its clock says."""

    name, takes_parts = "slow", True

    def __init__(self, depth: int, clock: "Clock", size: int | None = None):
        self.about = About({"widths": [4] * (depth + 1), "in_channels": 1, "num_classes": 1}, size)
        self.clock, self.seen = clock, []

    def __call__(self, images, statistics=None):  # noqa: ARG002
        self.seen.append(images.shape[-2:])
        self.clock.now += self.about.depth / 1000 * (10 if len(self.seen) == 1 else 1)  # the first pass is slower
        return np.zeros_like(images)


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(budget, "time", clock := Clock())
    return clock


def test_times_are_medians_without_the_first_pass(clock):
    engines = {depth: Slow(depth, clock) for depth in (1, 2)}
    assert budget.measure_times(engines, (40, 56), rounds=3) == pytest.approx({1: 1, 2: 2})
    assert [engine.seen for engine in engines.values()] == [[(40, 56)] * 4] * 2


def test_rounds_end_after_some_seconds_and_one_is_counted(clock):
    passes = []

    def work() -> None:
        passes.append(clock.now)
        clock.now += 60

    assert median_times({1: work}) == {1: 60_000}
    assert len(passes) == 2


def test_a_large_image_is_measured_as_a_part_and_its_tiles_are_counted(clock):
    engine = Slow(1, clock)
    found = budget.measure_times({1: engine}, (2000, 1500))
    assert set(engine.seen) == {(512, 512)}
    assert found[1] > 2000 * 1500 / 512**2  # tiles overlap
    engine.seen = []
    budget.predict_image(engine, np.zeros((2000, 1500, 1), np.uint8))
    computed = sum(height * width for height, width in engine.seen)
    assert found[1] == pytest.approx(computed / 512**2)
    resized = Slow(1, clock, size=64)
    assert budget.measure_times({1: resized}, (700, 900)) == pytest.approx({1: 1})
    assert set(resized.seen) == {(64, 64)}
    assert resized.about.frame == Frame((64, 64))


def test_a_size_is_measured_once_and_counts_for_those_near_it():
    measured = []

    def measure(size: tuple[int, int]) -> dict[int, float]:
        measured.append(size)
        return {1: size[0] * size[1] / 1000}

    times = TimesBySize(measure, resized=False)
    for size in ((100, 100), (100, 100), (110, 110), (95, 95)):
        assert times(size) == pytest.approx({1: size[0] * size[1] / 1000})
    assert measured == [(100, 100)]
    times((200, 200))
    times((128, 140))
    assert measured == [(100, 100), (200, 200), (128, 140)]
    times = TimesBySize(measure, resized=True)
    assert times((100, 100)) == times((110, 100))


@pytest.mark.parametrize(
    ("queue", "share"),
    [
        ([(100, 1)], 100),
        ([(100, 4)], 25),
        ([(100, 1), (100, 1)], 50),
        ([(100, 1), (math.inf, 1)], 100),
        ([(100, 1), (90, 1), (120, 3)], 24),
        ([(100, 1), (12, 1)], 100),  # even L1, twice 10 ms, is too late for it
        ([(-5, 1), (100, 1)], -5),
    ],
)
def test_a_share_is_what_lets_all_who_wait_be_in_time(queue, share):
    assert share_of_queue(queue, 10) == share


def test_nothing_fits_is_said():
    assert deepest_within({1: 5, 2: 9}, 8) == 1
    assert deepest_within({1: 5, 2: 9}, 4) is None
