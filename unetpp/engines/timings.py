"""The speed of engines on this machine: timed side by side, and stored for the next process."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from unetpp.engines.engine import ENGINES, Engine
from unetpp.engines.processor import has_gpu, processor
from unetpp.errors import UserError
from unetpp.threads import chosen_threads

SECONDS = 3.0  # in total, for all engines of a choice
LEAST, MOST = 1, 30  # rounds
SMALL_PX = 64
KEPT = 500  # choices that are stored; older ones are dropped
Key = tuple[str, int, int, int, int, tuple[str, ...]]  # sha256 of the model, depth, height, width, batch, engines


def time_engines(
    engines: Mapping[str, Engine], size: tuple[int, int], batch: int = 1, seconds: float = SECONDS
) -> dict[str, float]:
    """Milliseconds per image of each engine: the minimum over rounds in which each engine runs once."""
    channels = next(iter(engines.values())).about.in_channels
    images = np.random.default_rng(0).random((batch, channels, *size), np.float32)
    for engine in engines.values():
        engine(images)  # warms it up
    found: dict[str, list[float]] = {name: [] for name in engines}
    ends = time.monotonic() + seconds
    for number in range(MOST):
        if number >= LEAST and time.monotonic() > ends:
            break
        for name, engine in engines.items():
            began = time.perf_counter()
            engine(images)
            found[name].append(time.perf_counter() - began)
    return {name: min(times) / batch * 1000 for name, times in found.items()}


def recall(key: Key) -> dict[str, float] | None:
    """The stored result of `probe` on this machine with the present packages, or None."""
    times = _read().get(_name(key))
    if not isinstance(times, dict) or not times or not set(times) <= set(key[-1]):
        return None
    return times if all(isinstance(one, int | float) for one in times.values()) else None


def probe(key: Key, openers: Mapping[str, Callable[[], Engine]], size: tuple[int, int], batch: int) -> dict[str, float]:
    """`time_engines` for all engines that can be opened here; the result is stored if possible.

    Raises:
        UserError: no engine can be opened; the reason is that of the last one.
    """
    engines, refused = {}, None
    for name, open_one in openers.items():
        try:
            engines[name] = open_one()
        except UserError as error:
            refused = error
    if refused and not engines:
        raise refused
    times = time_engines(engines, *_affordable(next(iter(engines.values())), len(engines), size, batch))
    _keep(key, times)
    return times


def _affordable(engine: Engine, count: int, size: tuple[int, int], batch: int) -> tuple[tuple[int, int], int]:
    """Size and batch, halved until two passes of `count` engines like this one fit into the time of a choice."""
    (height, width), number = size, batch
    taken = time_engines({engine.name: engine}, (SMALL_PX, SMALL_PX), seconds=0)[engine.name] / 1000 / SMALL_PX**2
    while 2 * count * taken * number * height * width > SECONDS:
        if number > 1:
            number = math.ceil(number / 2)
        elif min(height, width) >= 2 * SMALL_PX:
            height, width = height // 2, width // 2
        else:
            break
    return (height, width), number


def _place() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "unetpp" / "engines.json"


def _name(key: Key) -> str:
    """A short hash of the key and of everything else on which times depend."""
    versions = {}
    for runtime in sorted({ENGINES[name].runtime for name in key[-1]}):
        with suppress(PackageNotFoundError):
            versions[runtime] = version(runtime)
    whole = json.dumps([key, processor(), has_gpu(), chosen_threads(), versions], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def _read() -> dict:
    """The stored times; empty if the file is missing or cannot be read as ours."""
    try:
        found = json.loads(_place().read_text(encoding="utf-8"))
        return dict(found["times_ms"]) if found["format"] == 1 else {}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _keep(key: Key, times: Mapping[str, float]) -> None:
    """Store times atomically; if the home folder is not writable, the next process measures again."""
    kept = list((_read() | {_name(key): dict(times)}).items())[-KEPT:]
    with suppress(OSError, RuntimeError):
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps({"format": 1, "times_ms": dict(kept)}), encoding="utf-8")
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)
