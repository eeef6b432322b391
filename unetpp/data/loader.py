"""Training batches that are ready before the step needs them.

Order and draws are fixed in advance (the batches of an epoch are lists of indices; a draw depends only on seed, epoch
and sample id), so that batches are bit for bit the same whether this process or any number of others make them.
"""

import multiprocessing
import os
import shutil
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from unetpp.data.crops import Key
from unetpp.data.scaling import STD_FLOOR
from unetpp.errors import UserError

AHEAD = 2  # batches that each process makes in advance
SHARED_MEMORY = Path("/dev/shm")  # through which tensors pass from process to process
Task = tuple[int, Sequence[int]]  # epoch, numbers of the samples of a batch, see `find_sample`


class SampleError(RuntimeError):
    """A sample that could not be read or augmented; the message names it."""


def find_sample(split, number: int, epoch: int, seed: int) -> tuple[int, Key]:
    """The image index of a sample, and the key of its draws.

    With several crops per image, the first crops of all images are counted first, then the second crops, and so on.
    """
    crop, index = divmod(number, len(split))
    id = split.id(index)
    return index, (seed, epoch, crop, id) if crop else (seed, epoch, id)


class AugmentedSamples:
    """Samples of a split for the network: augmented, then standardised.

    An image is standardised with the statistics of the whole image before augmentation: so a crop looks as it does in
    the image, and changes of brightness are kept.
    """

    def __init__(self, split, augment, seed: int):
        self.split, self.augment, self.seed = split, augment, seed

    def make(self, number: int, epoch: int) -> tuple[np.ndarray, ...]:
        """Image (H, W, C) float32 and mask (H, W) of a sample in an epoch."""
        split = self.split
        index, key = find_sample(split, number, epoch, self.seed)
        mean, std = split.moments(index)
        image, mask = self.augment(*split[index], key, split.spots(index), split.limits(index), (mean, std))
        # In place, and by rows of W * C: numpy is slow if the innermost axis has only 3 values.
        rows = image.reshape(len(image), -1)
        rows -= np.tile(mean, image.shape[1])
        rows /= np.tile(std + STD_FLOOR, image.shape[1])
        return image, mask

    def stack(self, samples: list[tuple[np.ndarray, ...]]) -> tuple[Tensor, ...]:
        """A batch: image (N, C, H, W) in channels_last, and mask (N, H, W)."""
        image, mask = stack(samples)
        return image.permute(0, 3, 1, 2), mask


def stack(samples: list[tuple[np.ndarray, ...]]) -> list[Tensor]:
    """Stack the arrays at each position into a tensor; in a loader process, directly in shared memory."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array if array.flags.writeable else array.copy())

    return [default_collate([tensor(array) for array in arrays]) for arrays in zip(*samples, strict=True)]


class Loader:
    """Batches of `samples`, made by this process, or by processes that live as long as the loader.

    Processes instead of threads, because augmentation is mostly Python, which runs one thread at a time and would block
    the step (benchmarks/data.md). They are forked from a server process that has imported what they need and has no
    threads: a fork of this process, with torch's and Ray's threads, may hang. They end with this process, however it
    ends.

    Args:
        samples: `make(number, epoch)` returns the arrays of a sample, `stack` a batch of them; must be picklable.
        num_workers: number of processes; 0 makes each batch in this process when it is needed.
        pin_memory: for a CUDA device: copies to it then run in parallel with its computation.

    Attributes:
        waited_s: seconds that this process waited for the batches of the last epoch. A GPU is idle for less, because
            it works asynchronously.
    """

    def __init__(self, samples, num_workers: int = 0, pin_memory: bool = False):
        self._dataset = _Dataset(samples)
        self._tasks: list[Task] = []
        self._loader: DataLoader | None = None
        self._running: Any = None
        self._pin_memory = pin_memory
        self.waited_s = 0.0
        if num_workers == 0:
            return
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            parts = (samples, *vars(samples).values())
            context.set_forkserver_preload(sorted({type(one).__module__ for one in parts}))
        self._loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._tasks,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            multiprocessing_context=context,
            worker_init_fn=_end_with_parent,
            prefetch_factor=AHEAD,
            persistent_workers=True,
        )

    def batches(self, shards: Sequence[Sequence[int]], epoch: int) -> Iterator[Any]:
        """The batches of an epoch, one for each list of indices; the first ones are being made when this returns.

        One epoch at a time: the rest of a previous epoch is dropped.

        Raises:
            SampleError, UserError: a sample failed, with its id; raised while iterating.
            UserError: the processes' batches do not fit into shared memory.
        """
        tasks: list[Task] = [(epoch, list(shard)) for shard in shards]
        self.waited_s = 0.0
        if self._loader is None:
            return self._timed(self._in_line(tasks))
        if tasks and self._running is None:
            self._check_shared_memory(tasks[0], self._loader.num_workers)
        self._tasks[:] = tasks
        self._running = iter(self._loader)  # one iterator, with its processes, for all epochs
        return self._timed(self._running)

    def close(self) -> None:
        """End the processes."""
        if self._running is not None:
            # torch ends them when its iterator is garbage-collected, but a traceback may keep it alive. This is the
            # only private call of torch here.
            self._running._shutdown_workers()
        self._loader = self._running = None

    def _in_line(self, tasks: list[Task]) -> Iterator[Any]:
        for task in tasks:
            batch = self._dataset[task]
            if self._pin_memory and not isinstance(batch, Exception):
                batch = tuple(tensor.pin_memory() for tensor in batch)
            yield batch

    def _timed(self, made: Iterator[Any]) -> Iterator[Any]:
        while True:
            began = time.perf_counter()
            try:
                batch = next(made, None)
            # torch's own error, or a broken connection: exceptions of samples arrive as batches.
            except (RuntimeError, OSError, EOFError) as error:
                raise RuntimeError(
                    f"a process that makes batches ended unexpectedly ({error}): killed, or out of memory? Fewer "
                    "train.loader_workers need less memory"
                ) from error
            self.waited_s += time.perf_counter() - began
            if batch is None:
                return
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _check_shared_memory(self, task: Task, num_workers: int) -> None:
        """Refuse batches that do not fit: they would kill a process with a bus error, without a message."""
        if not SHARED_MEMORY.is_dir():
            return
        epoch, indices = task
        sample = self._dataset.sample(indices[0], epoch)
        if isinstance(sample, Exception):
            raise sample
        needed = sum(array.nbytes for array in sample) * len(indices) * (num_workers * AHEAD + 1)
        free = shutil.disk_usage(SHARED_MEMORY).free
        if needed > free:
            raise UserError(
                f"{SHARED_MEMORY}: {free / 2**20:.0f} MiB are free, and the batches of train.loader_workers="
                f"{num_workers} need {needed / 2**20:.0f}: give the container more (docker run --shm-size=8g), or set "
                "train.loader_workers to 0"
            )


class _Dataset(Dataset):
    """The dataset that torch requests batches from, in any process; errors are returned, and name their sample."""

    def __init__(self, samples):
        self._samples = samples

    def sample(self, index: int, epoch: int) -> tuple[np.ndarray, ...] | Exception:
        try:
            return self._samples.make(index, epoch)
        except Exception as error:
            return self._named(error, [index], epoch)

    def __getitem__(self, task: Task) -> tuple[Tensor, ...] | Exception:
        epoch, indices = task
        made = []
        for index in indices:
            sample = self.sample(index, epoch)
            if isinstance(sample, Exception):
                return sample
            made.append(sample)
        try:
            return self._samples.stack(made)
        except Exception as error:  # of different shapes
            return self._named(error, indices, epoch)

    def _named(self, error: Exception, indices: Sequence[int], epoch: int) -> Exception:
        split = self._samples.split
        ids = ", ".join(repr(split.id(index % len(split))) for index in indices)
        where = f"{split.path}: sample{'s' * (len(indices) > 1)} {ids} in epoch {epoch + 1}"
        if isinstance(error, UserError):
            return UserError(f"{where}: {error}")
        named = SampleError(f"{where}: {type(error).__name__}: {error}")
        named.add_note("".join(traceback.format_exception(error)))  # otherwise lost on the way to the parent process
        return named


def _as_it_is(batch: Any) -> Any:
    return batch


def _end_with_parent(_: int) -> None:
    """In a loader process: exit when the process that uses it ends, even if that is killed.

    torch checks whether the parent process has changed, which does not work here: the parent is the server process,
    which lives as long as its children.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
