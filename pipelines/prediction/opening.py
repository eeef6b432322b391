"""A model by any name, opened to predict: which depth, which engine, and why."""

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
SMALL_PX = 2**18  # images of at most so many pixels do not fill several cores: as many are computed at once


@dataclass(frozen=True)
class Asked:
    """Which network of a model is asked for, and how it is computed."""

    depth: int | Literal["auto"] | None = None  # None: the deepest
    heads: str | None = None  # as of `read_heads`
    engine: str = "auto"
    tta: Symmetries = "none"
    max_latency_ms: float | None = None

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UserError: several ways to say which heads answer, or a budget without a number.
        """
        if isinstance(self.depth, int) + (self.heads is not None) + (self.max_latency_ms is not None) > 1:
            raise UserError("--depth, --heads and --max-latency-ms each say which heads answer: give one of the two")
        if self.depth == "auto" and self.max_latency_ms is None:
            raise UserError("--depth auto: expected --max-latency-ms, the time that an image may take")


@dataclass(frozen=True)
class Opened:
    """A model that is ready to predict."""

    predictor: Predictor
    how: dict[str, Any]  # by what its answers are known to be the same
    said: str  # depth, engine, and why
    streams: int  # batches that are best computed at once


def read_heads(text: str) -> dict[int, float] | Literal["mean"]:
    """The heads of `--heads`: "mean", which is all of them, or {2: 1.0, 4: 3.0} of "2,4:3".

    Raises:
        UserError: neither.
    """
    if text == "mean":
        return "mean"
    found = [re.fullmatch(r"(\d+)(?::(\d+\.?\d*|\.\d+))?", part.strip()) for part in text.split(",")]
    if not all(found):
        raise UserError(
            f"--heads {text}: expected mean, or depths with a weight where it is not 1, such as 2,3 or 2:1,4:3"
        )
    return {int(match[1]): float(match[2] or 1) for match in found if match}


def find_model(model: str) -> Family:
    """A model by any name that `unetpp.load` knows, or an .onnx in the folder of an export.

    In a project its exports and what evaluate measured of them are found, too; they count where they are this model's.

    Raises:
        UserError: no such model, or a damaged one; a .pt2, which runs code of its author when it is opened.
    """
    exports = measured = None
    if not is_address(model) and Path("dvc.yaml").is_file():
        with suppress(UserError, KeyError, ModuleNotFoundError):  # another's project, or no YAML is installed
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
    """Open the network that is asked for.

    Args:
        size: of an image as the network sees it, by which times are measured.
        threads: that compute.

    Raises:
        UserError: a depth, heads or an engine that it does not have, or no depth within the budget.
    """
    if family.is_export and (asked.depth, asked.heads, asked.max_latency_ms) != (None, None, None):
        raise UserError(f"{family.model}: an exported file is one depth and its head: leave --depth and --heads out")
    if asked.max_latency_ms is not None:
        engine, said = _within_budget(family, asked, asked.max_latency_ms, size, threads)
        streams = 1  # as it was measured
    else:
        heads = None if asked.heads is None else read_heads(asked.heads)
        depth = asked.depth if isinstance(asked.depth, int) else family.about.depth
        name, why = (
            ("torch", "engine torch") if heads and asked.engine == "auto" else _choose(family, asked, depth, size)
        )
        streams = 1 if size[0] * size[1] > SMALL_PX or name.startswith("openvino") else threads  # it has one queue
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
    """So many threads for an engine that is opened here; torch reads it when it is imported."""
    before = os.environ.get(NUMBER)
    os.environ[NUMBER] = str(threads)
    try:
        yield threads
    finally:
        os.environ.pop(NUMBER)
        os.environ.update({NUMBER: before} if before else {})


def _choose(family: Family, asked: Asked, depth: int, size: Size) -> tuple[str, str]:
    """Its name, and one line that says why."""
    return choose(family, depth, size) if asked.engine == "auto" else (asked.engine, f"engine {asked.engine}")


def _within_budget(family: Family, asked: Asked, most: float, size: Size, threads: int) -> tuple[Engine, str]:
    """The deepest depth of which an image takes at most `most` ms, measured here and now."""
    with _threads_of_each(threads) as each:
        engines = {
            depth: open_engine(family, depth, _choose(family, asked, depth, size)[0], threads=each)
            for depth in family.about.depths
        }
    times = measure_times({depth: Symmetric(engine, asked.tta) for depth, engine in engines.items()}, size)
    each = ", ".join(f"L{depth} {taken:.1f} ms by {engines[depth].name}" for depth, taken in times.items())
    depth = deepest_within(times, most)
    if depth is None:
        raise UserError(
            f"--max-latency-ms {most:g}: found {each}, for an image of {say_size(size)} px on this machine; expected a "
            "depth that fits: give more time, or take a smaller network"
        )
    name = engines[depth].name
    return engines[depth], f"L{depth}, engine {name}: the deepest within {most:g} ms at {say_size(size)} px ({each})"
