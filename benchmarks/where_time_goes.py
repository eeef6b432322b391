"""Where the CPU-seconds of a whole `unetpp predict` go, by part: a separate process, by the clocks of its threads.

    python -m benchmarks.where_time_goes predict IMAGES --model MODEL ...      (as `unetpp`; a line for each part)

`python -m benchmarks.predict --profile` makes a table of it. A part is what its functions take without the parts that
they call. What is left is Python that runs between them, the pools' threads and the end of the process.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from threading import local

PARTS = {
    "finding images and outputs": ["pipelines.predict:find_images", "pipelines.predict:check_outputs"],
    "the record of what is done": ["pipelines.prediction.record:Record.add", "pipelines.predict:_facts"],
    "the model: read, its sums": ["pipelines.predict:find_model"],
    "the engine: imported and opened": ["pipelines.predict:open_model"],
    "decoding": ["pipelines.prediction.flow:decode_image", "pipelines.prediction.flow:is_large"],
    "scaling, batches": ["pipelines.prediction.flow:as_batch"],
    "the network": ["pipelines.prediction.flow:predict_tiled"],
    "masks": ["pipelines.prediction.outputs:to_mask"],
    "encoding PNG": ["pipelines.prediction.outputs:encode_png"],
    "whole files": ["pipelines.prediction.flow:write_files"],
}
_inside = local()


def count(work: Callable, part: str, seconds: dict[str, float]) -> Callable:
    """A function that adds what it takes, without what counted functions inside of it take."""

    def counted(*args, **kwargs):
        began, above = time.thread_time(), getattr(_inside, "taken", 0.0)
        _inside.taken = 0.0
        try:
            return work(*args, **kwargs)
        finally:
            taken = time.thread_time() - began
            seconds[part] = seconds.get(part, 0.0) + taken - _inside.taken
            _inside.taken = above + taken

    return counted


def table(model: Path, images: Path, engines: list[str], depths: list[int], rounds: int) -> str:
    """A table: CPU-ms an image of each part of whole processes, medians over alternating rounds."""
    names = [(engine, depth) for engine in engines for depth in depths]
    found: dict[tuple[str, int], dict[str, list[float]]] = {name: {} for name in names}
    for _ in range(rounds):
        for engine, depth in names:
            shutil.rmtree(images.parent / "out", ignore_errors=True)
            command = [
                sys.executable,
                "-m",
                "benchmarks.where_time_goes",
                "predict",
                str(images),
                "--model",
                str(model),
            ]
            command += ["--engine", engine, "--depth", str(depth), "--out", str(images.parent / "out")]
            done = subprocess.run(
                command,
                cwd=images.parent,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
            )
            for line in done.stderr.splitlines():
                part, tab, seconds = line.partition("\t")
                if tab:
                    found[engine, depth].setdefault(part, []).append(float(seconds))
    number = len(list(images.iterdir()))
    each = {name: {part: median(one) / number * 1000 for part, one in parts.items()} for name, parts in found.items()}
    lines = [f"| part | {' | '.join(f'{engine} L{depth}' for engine, depth in names)} |"]
    lines.append(f"| --- |{' ---: |' * len(names)}")
    rows = {part: (each[name].get(part, 0) for name in names) for part in each[names[0]]}
    lines += [f"| {part} | {' | '.join(f'{taken:.2f}' for taken in row)} |" for part, row in rows.items()]
    lines.append(f"| all | {' | '.join(f'{sum(each[name].values()):.2f}' for name in names)} |")
    return "\n".join(lines)


def main() -> None:
    """The arguments are those of `unetpp`; a line for each part: its name, and CPU-seconds."""
    started = time.process_time()
    from pipelines.cli import build_parser

    import_module("pipelines.predict")
    imported = time.process_time()
    seconds = {"start of the interpreter": started, "imports of ours, numpy and Pillow": imported - started}
    for part, places in PARTS.items():
        for place in places:
            module, _, name = place.partition(":")
            owner = import_module(module)
            *owners, name = name.split(".")
            for one in owners:
                owner = getattr(owner, one)
            setattr(owner, name, count(getattr(owner, name), part, seconds))
    arguments = build_parser().parse_args(sys.argv[1:])
    arguments.run(arguments)
    seconds["all else"] = time.process_time() - sum(seconds.values())
    for part, taken in seconds.items():
        print(f"{part}\t{taken}", file=sys.stderr)


if __name__ == "__main__":
    main()
