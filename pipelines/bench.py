"""`unetpp bench`: what each engine makes of each depth of a model on this machine.

    python -m pipelines.bench MODEL EXPORTS 1 openvino "[96, 96, 8]"

is one pass in a process of its own, for its memory.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.console.progress import watched
from unetpp.engines.family import Family, find_family, open_engine
from unetpp.engines.processor import processor
from unetpp.engines.timings import time_engines
from unetpp.errors import UserError
from unetpp.images.frame import Size
from unetpp.threads import chosen_threads

USUAL_PX = 256  # side of the images, where training resized none
SECONDS = 10.0  # for all engines of a depth, beside their first passes


class Row(NamedTuple):
    """One engine at one depth."""

    depth: int
    engine: str
    difference_iou: float | None  # on val, from fp32 in eager mode; None: not measured
    ms: float  # of one image
    images_per_s: float  # of a batch
    peak_mib: float  # of a process that did nothing else


def bench(model: str, depth: int | None, size: int | None, batch: int, exports: Path, measured: Path) -> None:
    """Print a table of engines and depths.

    Args:
        depth: this one alone; by default all.
        size: side of the images in px, by default that to which training resized them, or 256.
        exports, measured: the folder of exports and the engines.json of evaluate; of another model they do not count.

    Raises:
        UserError: no such model or depth.
    """
    family = find_family(model, exports, measured)
    frame = family.about.frame
    sides = (size, size) if size else frame.size if frame else (USUAL_PX, USUAL_PX)
    rows, refused = measure(family, (model, str(exports)), [depth] if depth else family.about.depths, sides, batch)
    print(describe(rows, sides, batch))
    print("".join(f"{line}\n" for line in refused), end="")


def measure(
    family: Family, words: tuple[str, str], depths: Sequence[int], size: Size, batch: int
) -> tuple[list[Row], list[str]]:
    """A row for each engine that is here, and a line for each that could not be opened.

    Args:
        words: model and exports, by which a process opens them again.
    """
    rows, refused = [], []
    for depth in watched(depths, "engines, depths"):
        engines = {}
        for name in family.engines(depth):
            try:
                engines[name] = open_engine(family, depth, name)
            except UserError as error:
                refused.append(f"L{depth}: {error}")
        if not engines:
            continue
        alone, together = (time_engines(engines, size, number, SECONDS / 2) for number in (1, batch))
        for name in engines:
            peak, difference = measure_peak(*words, depth, name, size, batch), family.difference(depth, name)
            rows.append(Row(depth, name, difference, alone[name], 1000 / together[name], peak))
    return rows, refused


def measure_peak(model: str, exports: str, depth: int, name: str, size: Size, batch: int) -> float:
    """MiB of a process that opens an engine and computes a batch; its runtime and its weights are in it."""
    words = [model, exports, str(depth), name, json.dumps([*size, batch])]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.bench", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"the process that measures the memory of {name} ended with {done.returncode}: {done.stderr}"
        )
    return float(done.stdout.splitlines()[-1])


def describe(rows: Sequence[Row], size: Size, batch: int) -> str:
    """The table, with the machine."""
    lines = [
        f"images of {size[0]} x {size[1]}, batch {batch}, {processor()}, threads: {chosen_threads()}",
        f"{'depth':6}{'engine':18}{'IoU on val':>12}{'ms an image':>13}{'images/s':>10}{'peak MiB':>10}",
    ]
    for row in rows:
        points = "" if row.difference_iou is None else f"{row.difference_iou * 100:+.2f}"
        lines.append(
            f"{f'L{row.depth}':6}{row.engine:18}{points:>12}{row.ms:13.2f}{row.images_per_s:10.1f}{row.peak_mib:10.0f}"
        )
    return "\n".join([*lines, "IoU on val: points from fp32 in eager mode, where evaluate measured this very file"])


def _peak_mib() -> float:
    try:  # what `resource` says begins with the peak of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except OSError:
        import resource  # late: Windows has none

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _main(model: str, exports: str, depth: str, name: str, shape: str) -> None:
    height, width, batch = json.loads(shape)
    engine = open_engine(find_family(model, exports), int(depth), name)
    engine(np.random.default_rng(0).random((batch, engine.about.in_channels, height, width), np.float32))
    print(_peak_mib())


if __name__ == "__main__":
    _main(*sys.argv[1:])
