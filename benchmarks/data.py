"""Prepared data and the loader: opening, memory, images per second, and how long a training step waits.

    python -m benchmarks.data --out benchmarks/data.md

Everything is written to a temporary folder (12 GB, see --scratch) and removed. Rates are medians of interleaved
rounds. The peer is a plain torch DataLoader over PNG files with albumentations, as the classic code trains: it
decodes, augments and normalises each image, with processes forked from this one.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import SHORT, describe, head
from pipelines.storage.synthetic import make_image
from unetpp import NestedUNet
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.augment import Augment
from unetpp.data.crops import Crops
from unetpp.data.device_augment import RawSamples, augment_batches
from unetpp.data.loader import AHEAD, AugmentedSamples, Loader
from unetpp.training.loop import choose_precision, make_loss, make_optimizer, train_epoch

LIMITS = {"flips": "all", "quarter_turns": True, "brightness": 0.2, "hue": 10}
WIDTHS = (16, 32, 64, 128, 256)
BATCH = 16
CPU, ROOT = torch.device("cpu"), Path(__file__).resolve().parents[1]


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


def memory_mib() -> dict[str, float]:
    """This process's anonymous memory, which is its own, and its mapped file pages, which the system takes back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"anonymous": found["RssAnon"], "file": found["RssFile"]}


def read_epoch(path: Path) -> None:
    """In a process of its own: open a split that is not in the page cache, and read every byte in random order."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    before, began = memory_mib(), time.perf_counter()
    split = Split(path)
    opened = time.perf_counter() - began
    at_open = memory_mib()
    began = time.perf_counter()
    Split(path)
    again = time.perf_counter() - began
    order, total, seen = np.random.default_rng(0).permutation(len(split)), 0, []
    began = time.perf_counter()
    for number, index in enumerate(order.tolist()):
        image, mask = split[index]
        total += int(image.reshape(-1)[::1024].sum()) + int(mask.reshape(-1)[::1024].sum())  # touches each page
        if number in (len(order) // 10, len(order) - 1):
            seen.append(memory_mib())
    result = {
        "rows": len(split),
        "open_s": opened,
        "again_s": again,
        "epoch_s": time.perf_counter() - began,
        "bytes": path.stat().st_size,
    }
    result |= {"open_anon": at_open["anonymous"] - before["anonymous"]}
    result |= {"anon_tenth": seen[0]["anonymous"] - before["anonymous"]}
    result |= {"anon_end": seen[1]["anonymous"] - before["anonymous"], "file_end": seen[1]["file"] - before["file"]}
    print(json.dumps(result))


class Pngs(Dataset):
    """The peer: decode, augment, normalise."""

    def __init__(self, folder: Path, num: int, crop_px: int | None):
        self.folder, self.num = folder, num
        crop = [A.RandomCrop(crop_px, crop_px)] if crop_px else []
        self.transform = A.Compose(
            [
                *crop,
                A.RandomRotate90(),
                A.HorizontalFlip(),
                A.VerticalFlip(),
                A.RandomBrightnessContrast(0.2, 0.2),
                A.HueSaturationValue(10, 0, 0),
                A.Normalize(),
            ]
        )

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = cv2.imread(str(self.folder / f"image{index % 48}.png"))
        mask = cv2.imread(str(self.folder / f"mask{index % 48}.png"), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        assert mask is not None
        made = self.transform(image=image, mask=mask)
        return made["image"].transpose(2, 0, 1), made["mask"][None].astype(np.float32) / 255


def threaded(loader: Loader, shards: list, num_threads: int) -> Iterator:
    """The same batches by threads, as far ahead."""
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque = deque()
        for shard in shards:
            waiting.append(pool.submit(loader._dataset.__getitem__, (0, shard)))
            if len(waiting) > AHEAD * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def loader_rates(folder: Path, split: Split, crop_px: int | None, num_batches: int, rounds: int) -> list[str]:
    """Rows of a table: images a second of each way to make batches, alone."""
    augmented = AugmentedSamples(split, Augment(Crops(crop_px), **LIMITS, channels=3), 0)
    raw = RawSamples(split, Crops(crop_px), 0, **LIMITS, channels=3)
    rng = random.Random(0)
    shards = [rng.sample(range(len(split)), BATCH) for _ in range(num_batches)]
    loaders = {number: Loader(augmented, number) for number in (0, 1, 2)}
    raw_loader = Loader(raw)
    ways: dict[str, Callable] = {
        "in line": lambda: loaders[0].batches(shards, 0),
        "1 process": lambda: loaders[1].batches(shards, 0),
        "2 processes": lambda: loaders[2].batches(shards, 0),
        "1 thread": lambda: threaded(loaders[0], shards, 1),
        "2 threads": lambda: threaded(loaders[0], shards, 2),
        "`on_device`: what the processor does": lambda: raw_loader.batches(shards, 0),
        "`on_device`: all of it, on this processor": lambda: augment_batches(raw_loader.batches(shards, 0), CPU),
    }
    peers = {}
    for number in (0, 2):
        peers[number] = DataLoader(
            Pngs(folder, num_batches * BATCH, crop_px), BATCH, num_workers=number, persistent_workers=number > 0
        )
    ways["peer: DataLoader over PNG, in line"] = lambda: peers[0]
    ways["peer: DataLoader over PNG, 2 processes"] = lambda: peers[2]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            count = sum(1 for _ in way())
            assert count == num_batches, name
            if number:  # the first starts processes and fills caches
                times[name].append(time.perf_counter() - began)
    for loader in loaders.values():
        loader.close()
    peer = statistics.median(times["peer: DataLoader over PNG, in line"])
    lines = [
        "| batches by | images/s (median) | slowest to fastest | times the peer in line |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, taken in times.items():
        rates = sorted(num_batches * BATCH / one for one in taken)
        median = num_batches * BATCH / statistics.median(taken)
        ratio = peer / statistics.median(taken)
        lines.append(f"| {name} | {median:.0f} | {rates[0]:.0f} to {rates[-1]:.0f} | {ratio:.2f} |")
    return lines


def stalls(split: Split, crop_px: int | None, batch: int, steps: int, threads: int) -> list[str]:
    """Rows of a table: a training on all the cores, and the share of it that waits for batches."""
    torch.set_num_threads(threads)
    dtype = choose_precision("auto", CPU)
    lines = []
    for name, number, device in (("in line", 0, False), ("1 process", 1, False), ("`on_device`", 0, True)):
        torch.manual_seed(0)
        network = NestedUNet(WIDTHS).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizer = make_optimizer(network, "adamw", 1e-3, 0.9, 0.0)
        loss = make_loss("ce_dice", "mean", network.depths)
        crops = Crops(crop_px)
        if device:
            samples = RawSamples(split, crops, 0, **LIMITS, channels=3)
        else:
            samples = AugmentedSamples(split, Augment(crops, **LIMITS, channels=3), 0)
        loader = Loader(samples, number)
        for epoch in range(2):  # the first warms up
            shards = [list(range(step * batch, (step + 1) * batch)) for step in range(1 if epoch == 0 else steps)]
            batches = loader.batches(shards, epoch)
            began = time.perf_counter()
            made = augment_batches(batches, CPU) if device else batches
            train_epoch(network, made, optimizer, lambda _: 1e-3, 0, CPU, dtype, loss)
            taken = time.perf_counter() - began
        loader.close()
        lines.append(f"| {crop_px or 96} px | {name} | {steps * batch / taken:.1f} | {loader.waited_s / taken:.2%} |")
    torch.set_num_threads(1)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=100_000, help="images of 96x96")
    parser.add_argument("--large", type=int, default=2_000, help="images of 1024x1024")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scratch", type=Path, help="folder for 12 GB")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read_epoch(args.read)
        return
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
            reading = [sys.executable, "-m", "benchmarks.data", "--read", str(path)]
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
        f"A training of widths {WIDTHS[0]} to {WIDTHS[-1]}, threads: {args.threads}, "
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
