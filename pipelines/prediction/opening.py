"""Open a model of any name for prediction: which depth, which engine, and why."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.storage.stage_paths import stage_arguments
from unetpp.engines.engine import Engine
from unetpp.engines.family import MEASURED, Family, choose, find_family, open_engine
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.images.frame import Size, say_size
from unetpp.inference.budget import deepest_within, measure_times
from unetpp.inference.predictor import Predictor
from unetpp.inference.symmetric import Symmetric, Symmetries
from unetpp.inference.tiles import TILE_PX
from unetpp.models.about import About
from unetpp.models.addresses import is_address
from unetpp.models.listing import LISTING
from unetpp.threads import NUMBER

SHRUNK = 16  # times a side: an image that is reduced so much is not what prepare.size was meant for
SMALL_PX = 2**18  # an image of at most this many pixels does not use several cores: as many images run at once


@dataclass(frozen=True)
class Asked:
    """Which network of a model is requested, and how it is computed."""

    depth: int | Literal["auto"] | None = None  # None: the deepest
    heads: str | None = None  # see `read_heads`
    engine: str = "auto"
    tta: Symmetries = "none"
    max_latency_ms: float | None = None

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UserError: several options that choose the heads, or --depth auto without a budget.
        """
        if isinstance(self.depth, int) + (self.heads is not None) + (self.max_latency_ms is not None) > 1:
            raise UserError("--depth, --heads and --max-latency-ms each choose the heads: pass only one of them")
        if self.depth == "auto" and self.max_latency_ms is None:
            raise UserError("--depth auto: expected --max-latency-ms, the time in ms that an image may take")


@dataclass(frozen=True)
class Opened:
    """A model that is ready to predict."""

    predictor: Predictor
    how: dict[str, Any]  # all that determines its outputs: model, depth, heads, engine ...
    said: str  # depth, engine and the reason, as a log line
    streams: int  # how many batches to compute at once


def read_heads(text: str) -> dict[int, float] | Literal["mean"]:
    """Parse `--heads`: "mean" for all heads, or weights by depth, such as {2: 1.0, 4: 3.0} for "2,4:3".

    Raises:
        UserError: text that is neither.
    """
    if text == "mean":
        return "mean"
    found = [re.fullmatch(r"(\d+)(?::(\d+\.?\d*|\.\d+))?", part.strip()) for part in text.split(",")]
    if not all(found):
        raise UserError(
            f"--heads {text}: expected mean, or depths with optional weights (default 1), such as 2,3 or 2:1,4:3"
        )
    return {int(match[1]): float(match[2] or 1) for match in found if match}


def find_model(model: str) -> Family:
    """A model by any name that `unetpp.load` takes, or an .onnx in the folder of an export.

    In a project, also finds the model's exports and the timings that `evaluate` measured for them; those of another
    model are not used.

    Raises:
        UserError: no such model, a damaged one, or a .pt2, which can run its author's code when it is opened.
    """
    exports = measured = None
    if not is_address(model) and Path("dvc.yaml").is_file():
        with suppress(UserError, KeyError, ModuleNotFoundError):  # another kind of project, or YAML is not installed
            exports, measured = stage_arguments("export")["out"], stage_arguments("evaluate")["out"] / MEASURED
    return find_family(model, exports, measured)


def as_seen(image: str | Path, size: Size, about: About) -> Size:
    """The size at which the network sees an image, at most that of a tile; prints a warning if it is reduced a lot."""
    seen = about.frame.sides(size) if about.frame else size
    if (times := max(size) / max(seen)) > SHRUNK:
        print(
            f"warning: {image}: found {say_size(size)} px, which is reduced {times:.0f} times, to {say_size(seen)} px "
            "(prepare.size); for large images train with prepare.size=null and train.crop_px=256"
        )
    return min(seen[0], TILE_PX), min(seen[1], TILE_PX)


def open_model(family: Family, asked: Asked, size: Size, threads: int) -> Opened:
    """Open the requested network.

    Args:
        size: (height, width) of an image as the network sees it; times are measured at this size.
        threads: number of threads that compute.

    Raises:
        UserError: a depth, head or engine that the model does not have, or no depth within the budget.
    """
    if family.is_export and (asked.depth, asked.heads, asked.max_latency_ms) != (None, None, None):
        raise UserError(
            f"{family.model}: an exported file is a single depth: leave out --depth, --heads and --max-latency-ms"
        )
    if asked.max_latency_ms is not None:
        engine, said = _within_budget(family, asked, asked.max_latency_ms, size, threads)
        streams = 1  # as in the measurement
    else:
        heads = None if asked.heads is None else read_heads(asked.heads)
        depth = asked.depth if isinstance(asked.depth, int) else family.about.depth
        name, why = (
            ("torch", "engine torch") if heads and asked.engine == "auto" else _choose(family, asked, depth, size)
        )
        # OpenVINO has a single queue.
        streams = 1 if size[0] * size[1] > SMALL_PX or name.startswith("openvino") else threads
        with _threads_of_each(threads // streams) as each:
            engine = open_engine(family, None if heads else depth, name, heads=heads, threads=each)
        said = f"{f'heads {asked.heads}' if heads else f'L{depth}'}, {why}"
    how = {"model": family.about.sha256, "depth": engine.about.depth, "heads": asked.heads, "engine": engine.name}
    how |= {"tta": asked.tta, "exports": sha256(family.exports / LISTING) if family.exports else None}
    if asked.tta != "none":
        engine, said = Symmetric(engine, asked.tta), f"{said}; the mean over {asked.tta}"
    return Opened(Predictor(engine), how, said, streams)


@contextmanager
def _threads_of_each(threads: int) -> Iterator[int]:
    """Set the number of threads for an engine that is opened in this block; torch reads it when it is imported."""
    before = os.environ.get(NUMBER)
    os.environ[NUMBER] = str(threads)
    try:
        yield threads
    finally:
        os.environ.pop(NUMBER)
        os.environ.update({NUMBER: before} if before else {})


def _choose(family: Family, asked: Asked, depth: int, size: Size) -> tuple[str, str]:
    """The name of the engine, and the reason in one line."""
    return choose(family, depth, size) if asked.engine == "auto" else (asked.engine, f"engine {asked.engine}")


def _within_budget(family: Family, asked: Asked, most: float, size: Size, threads: int) -> tuple[Engine, str]:
    """The deepest depth at which an image takes at most `most` ms, measured now on this machine."""
    with _threads_of_each(threads) as each:
        engines = {
            depth: open_engine(family, depth, _choose(family, asked, depth, size)[0], threads=each)
            for depth in family.about.depths
        }
    times = measure_times({depth: Symmetric(engine, asked.tta) for depth, engine in engines.items()}, size)
    each = ", ".join(f"L{depth} {taken:.1f} ms with {engines[depth].name}" for depth, taken in times.items())
    depth = deepest_within(times, most)
    if depth is None:
        raise UserError(
            f"--max-latency-ms {most:g}: found {each}, for an image of {say_size(size)} px on this machine; expected a "
            "depth within the budget: raise it, or use a smaller network"
        )
    name = engines[depth].name
    return engines[depth], f"L{depth}, engine {name}: the deepest within {most:g} ms at {say_size(size)} px ({each})"
