"""Images a second of the loader and its peer, and how long a training step waits."""

import random
import statistics
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

from unetpp import NestedUNet
from unetpp.data.arrow_split import Split
from unetpp.data.augment import Augment
from unetpp.data.crops import Crops
from unetpp.data.device_augment import RawSamples, augment_batches
from unetpp.data.loader import AHEAD, AugmentedSamples, Loader
from unetpp.training.loop import choose_precision, make_loss, make_optimizer, train_epoch

LIMITS = {"flips": "all", "quarter_turns": True, "brightness": 0.2, "hue": 10}
WIDTHS = (16, 32, 64, 128, 256)
BATCH = 16
CPU = torch.device("cpu")


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
    """Rows of a table: a training run on all the cores, and the share of it that waits for batches."""
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
