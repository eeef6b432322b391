"""The epochs of a training run, as one process, or one of several, computes them.

This file uses torch.distributed but not Ray: whatever starts the processes calls `epochs` in each.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.training.epoch_metrics import make_row
from pipelines.training.setup import Resumable
from pipelines.training.spec import TrainSpec
from pipelines.training.state import Best, TrainState
from unetpp.errors import UserError
from unetpp.models.segmenter import Segmenter
from unetpp.training.batch_norm import (
    STATISTICS_IMAGES,
    average_statistics,
    find_batch_norms,
    recompute_statistics,
    reset_statistics,
)
from unetpp.training.choice import steady
from unetpp.training.failures import FailedError, blank_images, describe, raise_any
from unetpp.training.loop import plain_batches, step_seed, train_steps, validate
from unetpp.training.step import NonFiniteError

# Several processes must stop at the same step. They agree on it every so many steps: each time costs an exchange, and
# makes a GPU wait.
AGREE_EVERY = {"cpu": 1, "cuda": 8}


class Wish(IntEnum):
    """What a training run is asked to do between two steps; of the wishes of all processes, the largest wins."""

    GO_ON = 0
    KEEP = 1  # yield a state
    STOP = 2  # yield a state, the last


def epochs(
    spec: TrainSpec,
    device: torch.device,
    state: TrainState | None = None,
    rank: int = 0,
    world: int = 1,
    wish: Callable[[], Wish] = lambda: Wish.GO_ON,
    watch: Callable[[int, int, list[int]], None] = lambda *_: None,
) -> Iterator[TrainState]:
    """Train, and yield the state after each epoch: all that a later call needs to resume from there.

    Args:
        state: one that was yielded before; None starts from scratch.
        rank, world: this process's number, and how many there are; if several, torch.distributed is already set up.
        wish: called between steps; what any process wishes, all do.
        watch: called after each step with the epoch, its steps so far, and the number of images in each of its steps.

    Yields:
        the state after each epoch; inside an epoch also every `train.checkpoint_every_steps` steps and on a wish. Its
        tensors are not copies: further training changes them.

    Raises:
        UserError: the loss is no longer finite, or a batch does not fit into memory.
    """
    training = Training(spec, device, state, rank, world, wish, watch)
    try:
        yield from training.run()
    finally:
        training.batches.close()


class Training(Resumable):
    """See `epochs`."""

    def __init__(
        self,
        spec: TrainSpec,
        device: torch.device,
        state: TrainState | None = None,
        rank: int = 0,
        world: int = 1,
        wish: Callable[[], Wish] = lambda: Wish.GO_ON,
        watch: Callable[[int, int, list[int]], None] = lambda *_: None,
    ):
        super().__init__(spec, device, state, rank, world)
        self.wish, self.watch = wish, watch
        self.failed: Exception | None = None  # an error of this process that the others do not know of yet

    def run(self) -> Iterator[TrainState]:
        """See `epochs`."""
        done, first = len(self.history), self.resumed.step
        if done == self.train.epochs:
            return
        batches = iter(())
        with self._told():
            batches = self.batches.begin(done, first)
        for epoch in range(done, self.train.epochs):
            began = time.monotonic()
            sums = torch.zeros(2, dtype=torch.float64, device=self.device)
            if first:
                sums += self.restore_sums().to(self.device)
            else:
                reset_statistics(self.network)
            for state in self._steps(epoch, first, batches, sums):
                yield state
                if state.stopped:
                    return
            trained, waited_s = time.monotonic() - began, self.batches.waited_s
            self._finish_statistics(epoch)
            if epoch + 1 < self.train.epochs:
                with self._told():
                    batches = self.batches.begin(epoch + 1)  # while validation runs
            row = self._validate(epoch, sums)
            row["images_per_s"] = round(sum(self.sizes[first:]) / trained, 2)
            row["data_wait_share"] = round(waited_s / trained, 4)  # of this process, see Loader
            if self.step.skipped:
                row["skipped_steps"] = self.step.skipped
            self.history.append(row)
            score = steady([one["val_iou"] for one in self.history])
            if score > self.best.val_iou:
                weights = {key: value.detach().cpu().clone() for key, value in self.result.state_dict().items()}
                self.best = Best(epoch, score, weights)
            first = 0
            yield self.state()

    def _steps(self, epoch: int, first: int, batches: Iterator, sums: Tensor) -> Iterator[TrainState]:
        """Make the steps of an epoch from `first` on, adding to `sums`; yields the states inside the epoch."""
        every, before = self.train.checkpoint_every_steps, epoch * len(self.sizes)
        steps = train_steps(
            self.step,
            self._announced(batches, len(self.sizes) - first) if self.world > 1 else batches,
            self.rate,
            before + first,
            self.sizes[first:],
            lambda number: step_seed(self.train.seed, epoch, number - before, self.rank),
        )
        number = first
        try:
            for number, done in enumerate(steps, start=first + 1):
                sums += done
                self.watch(epoch, number, self.sizes)
                wish = self._agree(number)
                if wish or (every and (before + number) % every == 0 and number < len(self.sizes)):
                    self.step.look()  # a checkpoint must not contain non-finite values
                    yield self.state(number, sums, wish == Wish.STOP)
        except NonFiniteError as error:
            raise self.batches.explain(error, epoch, error.step - before) from None
        except FailedError as error:
            place = self.batches.place(epoch, error.step - before, error.rank)
            raise UserError(f"{error}\n{place}") from None
        except Exception as error:
            error.add_note(self.batches.place(epoch, min(number, len(self.sizes) - 1), self.rank))
            raise

    def _announced(self, batches: Iterator, num: int) -> Iterator:
        """The batches; if one cannot be made, blank ones replace it and the rest, and the step tells all why."""
        made = 0
        try:
            if self.failed:
                raise self.failed
            for batch in batches:
                made += 1
                yield batch
        except Exception as error:
            self.step.absent = error
            blank = blank_images(self.network)[:0]
            yield from [(blank, blank[:, 0])] * (num - made)

    def _agree(self, number: int) -> Wish:
        """What all processes will do after this step of the epoch."""
        if self.world == 1:
            return self.wish()
        if number % AGREE_EVERY.get(self.device.type, 1) and number < len(self.sizes):
            return Wish.GO_ON
        wanted = torch.tensor([float(self.wish())], device=self.device)
        dist.all_reduce(wanted, dist.ReduceOp.MAX)
        return Wish(int(wanted.item()))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """With several processes, keep an error of the block until all of them learn about it together."""
        try:
            yield
        except Exception as error:
            if self.world == 1 or isinstance(error, dist.DistError):
                raise
            self.failed = self.failed or error

    def _finish_statistics(self, epoch: int) -> None:
        """Make the batch-norm statistics match the validated weights, and equal in all processes."""
        if self.ema and find_batch_norms(self.ema.network):
            enough = -(-STATISTICS_IMAGES // self.train.batch_size)
            with self._told():
                recompute_statistics(self.ema.network, self.batches.begin(epoch, last=enough), self.device, self.dtype)
        if self.world > 1:
            average_statistics(self.result, self.world)

    def _validate(self, epoch: int, sums: Tensor) -> dict[str, Any]:
        """Validate; returns the row of the epoch."""
        shard = range(self.rank, len(self.val_split), self.world)
        found = torch.full((len(self.network.depths) + 1, 2), torch.nan, dtype=torch.float64, device=self.device)
        with self._told():
            if self.canvas:  # a batch contains images of one shape
                shard = sorted(shard, key=self.val_split.shape)
            whole = plain_batches(self.val_split, shard, self.train.batch_size)
            segmenter = Segmenter(self.result, canvas=self.canvas)
            found = validate(segmenter, whole, self.dtype, self.class_weights, self.train.loss)
        if self.failed:
            found.fill_(torch.nan)  # all processes will see it
        totals = torch.cat([sums.view(1, 2), found])
        if self.world > 1:  # sums and counts are added over the processes before they are divided
            dist.all_reduce(totals)
            if not torch.isfinite(totals).all():
                self._raise_any(epoch)
        row = make_row(epoch, totals, self.network.depths, self.rate((epoch + 1) * len(self.sizes) - 1))
        if not torch.isfinite(totals).all() or not totals[0, 1]:  # true in all processes or in none: all stop together
            raise UserError(
                f"non-finite loss in epoch {epoch + 1}: {row}; try a lower train.learning_rate or a longer "
                "train.warmup_epochs"
            )
        return row

    def _raise_any(self, epoch: int) -> None:
        """In all processes, raise what went wrong in any of them since the last step."""
        try:
            raise_any(describe(self.failed) if self.failed else None, self.world)
        except FailedError as error:
            raise UserError(
                f"{error}\nat the end of epoch {epoch + 1} (process {error.rank} of {self.world})"
            ) from None
