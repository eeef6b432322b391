"""Prepared data and the loader: opening, memory, images per second, and how long a training step waits.

    python -m benchmarks.data --out benchmarks/data.md

Everything is written to a temporary folder (12 GB, see --scratch) and removed. Rates are medians of interleaved
rounds. The peer is a plain torch DataLoader over PNG files with albumentations, as the classic code trains: it
decodes, augments and normalises each image, with processes forked from this one.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.data.loading import BATCH, CPU, WIDTHS, loader_rates, stalls
from benchmarks.machine import SHORT, describe, head
from pipelines.storage.synthetic import make_image
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.training.loop import choose_precision

ROOT = Path(__file__).resolve().parents[2]


def draw(size_px: int, num: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Synthetic RGB images (H, W, 3) uint8 and their masks (H, W) uint8."""
    pairs = []
    for index in range(num):
        image, instances, _ = make_image(index, 0, size_px)
        image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
        pairs.append((np.ascontiguousarray(image), (instances > 0).astype(np.uint8)))
    return pairs


def write(path: Path, pairs: list, num: int) -> float:
    """A split of `num` rows from a few images; seconds."""
    began = time.perf_counter()
    with SplitWriter(path) as writer:
        for index in range(num):
            image, mask = pairs[index % len(pairs)]
            writer.add(f"image {index:06}", "kind", image, mask)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=100_000, help="images of 96x96")
    parser.add_argument("--large", type=int, default=2_000, help="images of 1024x1024")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scratch", type=Path, help="folder for 12 GB")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that 12 GB do not stay behind
    torch.set_num_threads(1)
    auto = choose_precision("auto", CPU)
    machine, began = describe(CPU, [torch.float32, auto]), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        opening, loading, waiting = [], [], []
        for size_px, rows, crop_px, num_batches in ((96, args.small, None, 40), (1024, args.large, 512, 3)):
            pairs = draw(size_px, 48 if size_px < 512 else 6)
            path = folder / "train.arrow"
            written_s = write(path, pairs, rows)
            reading = [sys.executable, "-m", "benchmarks.data.opening", str(path)]
            done = subprocess.run(reading, cwd=ROOT, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            cells = [f"{rows:,} of {size_px}x{size_px}", f"{found['bytes'] / 2**30:.2f}", f"{written_s:.0f}"]
            cells += [f"{found['open_s'] * 1e3:.0f}", f"{found['again_s'] * 1e3:.1f}"]
            cells += [f"{found[key]:.1f}" for key in ("open_anon", "anon_tenth", "anon_end")]
            cells += [f"{found['file_end']:.0f}", f"{found['epoch_s']:.1f}"]
            opening.append(f"| {' | '.join(cells)} |")
            for number in range(48):
                image, mask = pairs[number % len(pairs)]
                cv2.imwrite(str(folder / f"image{number}.png"), image)
                cv2.imwrite(str(folder / f"mask{number}.png"), mask * 255)
            split = Split(path)
            print(f"{time.perf_counter() - began:.0f} s: {size_px} px written and read", file=sys.stderr, flush=True)
            title = (
                f"96x96, whole, batches of {BATCH}"
                if crop_px is None
                else f"512x512 crops of 1024x1024, batches of {BATCH}"
            )
            loading += [f"### {title}", "", *loader_rates(folder, split, crop_px, num_batches, args.rounds), ""]
            print(f"{time.perf_counter() - began:.0f} s: {size_px} px loaded", file=sys.stderr, flush=True)
            batch, steps = (8, 4) if crop_px is None else (1, 3)
            waiting += stalls(split, crop_px, batch, steps, args.threads)
            path.unlink()
    command = (
        f"python -m benchmarks.data --small {args.small} --large {args.large} --rounds {args.rounds} "
        f"--threads {args.threads}"
    )
    lines = [
        *head("Prepared data and the loader", command, machine),
        f"{time.perf_counter() - began:.0f} s in all. benchmarks/gpu.md has the figures of a GPU.",
        "",
        "## Opening and memory",
        "",
        "A separate process opens the file, which is not in the page cache, and reads every page of every image in "
        "random order. Anonymous memory is the process's own; mapped pages are the page cache's, and the system takes "
        "them back when memory is short.",
        "",
        "| images | GiB | write s | open ms | again ms | anonymous MiB at open | after a tenth | at the end "
        "| mapped MiB at the end | epoch s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *opening,
        "",
        "## The loader alone",
        "",
        "Flips, brightness, hue, standardisation. The peer decodes PNG, and then does about the same.",
        "",
        *loading,
        "## What a step waits",
        "",
        f"A training run of widths {WIDTHS[0]} to {WIDTHS[-1]}, threads: {args.threads}, "
        f"{SHORT[auto]}; the share of its time that it waited for data.",
        "",
        "| images | batches by | images/s of the training | waited |",
        "| --- | --- | ---: | ---: |",
        *waiting,
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
