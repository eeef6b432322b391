"""The training batches of one process: which samples it gets, how they are made, and how messages name them.

The order of an epoch is the same in all processes, and each takes its share of every batch. Like
`pipelines.training.epochs`, this file uses torch.distributed but not Ray.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from pipelines.training.spec import TrainSpec
from unetpp.data.arrow_split import Split
from unetpp.data.augment import Augment
from unetpp.data.crops import Crops
from unetpp.data.device_augment import RawSamples, augment_batches
from unetpp.data.loader import AugmentedSamples, Loader
from unetpp.data.targets import CropsWithTargets, Numbered
from unetpp.data.warp import Warp
from unetpp.errors import UserError
from unetpp.network.masks import MASK
from unetpp.training.loop import cut_epoch, epoch_order
from unetpp.training.step import NonFiniteError


def make_loader(spec: TrainSpec, split: Split, device: torch.device) -> Loader:
    """The loader of a split's training batches, according to the sections `train` and `augment` of params."""
    train, augment = spec.train, spec.augment
    limits: dict[str, Any] = augment.model_dump(include={"flips", "quarter_turns", "brightness", "hue"})
    limits["channels"] = spec.manifest.channels
    frame = spec.manifest.frame
    crops = Crops(train.crop_px, train.foreground_crops, frame and frame.canvas)
    crops = Warp(crops, augment.rotate, augment.zoom)
    source = split
    if spec.model.targets != MASK:
        source, crops = Numbered(split), CropsWithTargets(crops, spec.manifest.background)
    if augment.on_device:
        samples = RawSamples(source, crops, train.seed, **limits)
    else:
        samples = AugmentedSamples(source, Augment(crops, **limits), train.seed)
    return Loader(samples, train.loader_workers, pin_memory=device.type == "cuda")


class Batches:
    """The batches of every epoch of a training run, for process `rank` of `world`.

    Attributes:
        sizes: the number of samples in each step of an epoch, over all processes: images, or crops of them.
    """

    def __init__(self, spec: TrainSpec, split: Split, device: torch.device, rank: int, world: int):
        train = spec.train
        self._split, self._seed, self._device, self._rank, self._world = split, train.seed, device, rank, world
        self._on_device = spec.augment.on_device
        self.loader = make_loader(spec, split, device)
        # Cut for the maximum number of processes, even if some are gone: the batches are always the same.
        self._num = len(split) * train.crops_per_image
        self.sizes = cut_epoch(self._num, train.batch_size, max(world, train.max_workers))

    @property
    def waited_s(self) -> float:
        """For how long the steps of the last epoch waited for their batches, see `Loader`."""
        return self.loader.waited_s

    def shards(self, epoch: int, rank: int | None = None) -> list[list[int]]:
        """The samples of this process, or of another one, in each batch of an epoch."""
        rank = self._rank if rank is None else rank
        order, first, shards = epoch_order(self._num, self._seed, epoch), 0, []
        for size in self.sizes:
            shards.append(order[first : first + size][rank :: self._world])
            first += size
        return shards

    def begin(self, epoch: int, first: int = 0, last: int | None = None) -> Iterator:
        """The batches of an epoch from `first` up to `last`, exclusive; the first ones are already being made."""
        batches = self.loader.batches(self.shards(epoch)[first:last], epoch)
        return augment_batches(batches, self._device) if self._on_device else batches

    def close(self) -> None:
        """Stop the processes that make batches in advance."""
        self.loader.close()

    def ids(self, epoch: int, number: int, rank: int | None = None) -> list[str]:
        """The ids of the samples that this process, or another one, has in a step of an epoch."""
        return [self._split.id(index % len(self._split)) for index in self.shards(epoch, rank)[number]]

    def place(self, epoch: int, number: int, rank: int) -> str:
        """Where a process failed: the epoch, the step, and its samples there."""
        who = f" (process {rank} of {self._world})" if self._world > 1 else ""
        samples = ", ".join(self.ids(epoch, number, rank))
        return f"in epoch {epoch + 1}, step {number + 1} of {len(self.sizes)}, of {samples}{who}"

    def explain(self, error: NonFiniteError, epoch: int, number: int) -> UserError:
        """Name the samples of the batch, and those with a non-finite loss; all processes get the same message."""
        batch = self.ids(epoch, number)
        found = [(batch, [batch[place] for place in error.images])]
        if self._world > 1:
            every: list[Any] = [None] * self._world
            dist.all_gather_object(every, found[0])
            found = every
        bad = [id for _, some in found for id in some]
        what = f"loss of the sample(s) {', '.join(bad)}" if bad else "gradient (every sample's loss is finite)"
        return UserError(
            f"non-finite {what} in epoch {epoch + 1}, step {number + 1} of {len(self.sizes)}; the batch: "
            f"{', '.join(id for ids, _ in found for id in ids)}. If these images are correct, try a lower "
            "train.learning_rate, a longer train.warmup_epochs, or train.clip_norm. train.nonfinite=skip drops such "
            "steps"
        )
