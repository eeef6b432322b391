"""A training, for one process or for one of several: which samples are its own, what is yielded, how it goes on.

It knows torch.distributed and nothing of Ray: whoever sets the processes up calls `epochs` in each.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.training.batches import Batches
from pipelines.training.ddp import wrap
from pipelines.training.epoch_metrics import make_row
from pipelines.training.setup import Setup
from pipelines.training.spec import TrainSpec
from pipelines.training.state import Best, TrainState
from unetpp.errors import UserError, said
from unetpp.models.segmenter import Segmenter
from unetpp.network.model import NestedUNet
from unetpp.training.batch_norm import (
    STATISTICS_IMAGES,
    Statistics,
    average_statistics,
    find_batch_norms,
    recompute_statistics,
    reset_statistics,
)
from unetpp.training.choice import steady
from unetpp.training.ema import Ema
from unetpp.training.failures import FailedError, blank_images, describe, raise_any
from unetpp.training.loop import encoder_share, make_scaler, plain_batches, schedule, step_seed, train_steps, validate
from unetpp.training.step import NonFiniteError, TrainStep

# Several processes must stop at the same step, and agree on it so often: each time costs an exchange, and makes a GPU
# wait.
AGREE_EVERY = {"cpu": 1, "cuda": 8}


class Wish(IntEnum):
    """What is asked of a training between two steps; of several processes' wishes the largest is done."""

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
    """Train, and yield the state after each epoch; it is all that a later call needs to go on from there.

    Args:
        state: one that was yielded before; None begins.
        rank, world: this process's number, and how many there are; torch.distributed is set up if several.
        wish: asked after steps; whatever any process wants, all do.
        watch: told after each step: the epoch, the steps done of it, the images in each of its steps.

    Yields:
        the state after each epoch; and inside of one, after each `train.checkpoint_every_steps` and where it is wished
        for. Its tensors are those that training goes on to change.

    Raises:
        UserError: the loss is not finite any more, or a batch does not fit.
    """
    training = Training(spec, device, state, rank, world, wish, watch)
    try:
        yield from training.run()
    finally:
        training.batches.close()


class Training(Setup):
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
        super().__init__(spec, device, world)
        self.rank, self.world, self.wish, self.watch = rank, world, wish, watch
        train, network, state = self.train, self.network, state or TrainState()
        scaler = make_scaler(device, self.dtype)
        self.ema = None if train.ema is None else Ema(network, train.ema)
        self.history, self.best = list(state.history), state.best
        parts: list[Any] = [network, self.optimizer, self.ema and self.ema.network, scaler]
        if state.weights is not None:
            for part, kept in zip(parts, (state.weights, state.optimizer, state.ema, state.scaler), strict=True):
                if part is not None:
                    part.load_state_dict(kept)
        elif file := spec.find_init():
            try:
                network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            except Exception as error:
                raise UserError(
                    f"{file}: not the weights of this network ({said(error)}); run `dvc repro search`, or "
                    "set train.init=null"
                ) from None
        elif spec.encoder_weights:
            spec.encoder_weights.load(network)
        if self.ema and state.weights is None:
            self.ema.network.load_state_dict(network.state_dict())
        self.statistics = Statistics(network)
        # More parts than params want came of a lack of memory (train.on_oom).
        usual = self._parts(state.world or world)
        accumulate = round(self._parts(world) * (state.accumulate or usual) / usual)
        self.batches = Batches(spec, self.train_split, device, rank, world)
        self.sizes = self.batches.sizes
        self.step = TrainStep(
            wrap(network, train, device, world),
            self.optimizer,
            self.loss,
            device,
            self.dtype,
            world=world,
            accumulate=accumulate,
            clip_norm=train.clip_norm,
            nonfinite=train.nonfinite,
            on_oom=train.on_oom,
            ema=self.ema,
            scaler=scaler,
            encoder_share=encoder_share(train.encoder_lr, train.freeze_encoder_epochs * len(self.sizes)),
        )
        self.step.skipped = state.skipped
        self.rate = schedule(train.learning_rate, train.warmup_epochs * len(self.sizes), train.epochs * len(self.sizes))
        self.resumed = state
        self.failed: Exception | None = None  # in this process, and not known to the others yet

    @property
    def result(self) -> NestedUNet:
        """The network that is validated, and that the best epoch keeps."""
        return self.ema.network if self.ema else self.network  # pyright: ignore[reportReturnType]

    def _parts(self, world: int) -> int:
        """In how many parts each of so many processes computes its share of a batch, as params want it.

        Of fewer processes each has a larger share: none holds more images at once than it does where all are there, and
        batch norm sees as many. Only batch norm over the whole batch is left the whole share.
        """
        train = self.train
        return (
            train.accumulate if train.sync_batchnorm else -(-train.accumulate * max(world, train.max_workers) // world)
        )

    def _take_over(self) -> Tensor:
        """The sums of the part of an epoch that is done, which its statistics are put back to.

        Of another number of processes the sums are added up, in process 0, and the statistics are the mean.
        """
        sums, rows, accumulate = self.resumed.sums, self.resumed.statistics, self.resumed.accumulate
        assert sums is not None
        assert rows is not None
        assert accumulate is not None
        rows = rows.to(self.device)
        if len(sums) == self.world:
            self.statistics.restore_flat(rows[self.rank])
            return sums[self.rank]
        self.statistics.restore_flat(self.statistics.merge(rows, self.step.accumulate / accumulate))
        return sums.sum(dim=0) if self.rank == 0 else torch.zeros_like(sums[0])

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
                sums += self._take_over().to(self.device)
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
            yield self._state()

    def _steps(self, epoch: int, first: int, batches: Iterator, sums: Tensor) -> Iterator[TrainState]:
        """Make the steps of an epoch from `first` on, adding to `sums`; yields the states inside of it."""
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
                    self.step.look()  # nothing that is not finite is kept
                    yield self._state(number, sums, wish == Wish.STOP)
        except NonFiniteError as error:
            raise self.batches.explain(error, epoch, error.step - before) from None
        except FailedError as error:
            place = self.batches.place(epoch, error.step - before, error.rank)
            raise UserError(f"{error}\n{place}") from None
        except Exception as error:
            error.add_note(self.batches.place(epoch, min(number, len(self.sizes) - 1), self.rank))
            raise

    def _announced(self, batches: Iterator, num: int) -> Iterator:
        """The batches; where one cannot be made, blank ones instead: the step tells all processes why."""
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
        """What all processes do after this step of the epoch."""
        if self.world == 1:
            return self.wish()
        if number % AGREE_EVERY.get(self.device.type, 1) and number < len(self.sizes):
            return Wish.GO_ON
        wanted = torch.tensor([float(self.wish())], device=self.device)
        dist.all_reduce(wanted, dist.ReduceOp.MAX)
        return Wish(int(wanted.item()))

    def _state(self, step: int = 0, sums: Tensor | None = None, stopped: bool = False) -> TrainState:
        """What `epochs` yields; with the sums of a part of an epoch also what each process knows of it alone."""
        found = None
        if sums is not None:
            own = torch.cat([sums, self.statistics.flat().to(self.device)])
            rows = [own]
            if self.world > 1:
                rows = [torch.empty_like(own) for _ in range(self.world)]
                dist.all_gather(rows, own)
            found = torch.stack(rows).cpu()
        return TrainState(
            epoch=len(self.history),
            step=step,
            history=list(self.history),
            best=self.best,
            weights=self.network.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=self.step.scaler.state_dict() if self.step.scaler else None,
            ema=self.ema.network.state_dict() if self.ema else None,
            accumulate=self.step.accumulate,
            skipped=self.step.skipped,
            world=self.world,
            sums=None if found is None else found[:, :2],
            statistics=None if found is None else found[:, 2:],
            stopped=stopped,
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """An error in the block, where there are several processes, is kept until all learn of it together."""
        try:
            yield
        except Exception as error:
            if self.world == 1 or isinstance(error, dist.DistError):
                raise
            self.failed = self.failed or error

    def _finish_statistics(self, epoch: int) -> None:
        """Statistics of batch norm that belong to the weights which are validated, the same in all processes."""
        if self.ema and find_batch_norms(self.ema.network):
            enough = -(-STATISTICS_IMAGES // self.train.batch_size)
            with self._told():
                recompute_statistics(self.ema.network, self.batches.begin(epoch, last=enough), self.device, self.dtype)
        if self.world > 1:
            average_statistics(self.result, self.world)

    def _validate(self, epoch: int, sums: Tensor) -> dict[str, Any]:
        """The row of an epoch."""
        shard = range(self.rank, len(self.val_split), self.world)
        found = torch.full((len(self.network.depths) + 1, 2), torch.nan, dtype=torch.float64, device=self.device)
        with self._told():
            if self.canvas:  # images of one shape make a batch
                shard = sorted(shard, key=self.val_split.shape)
            whole = plain_batches(self.val_split, shard, self.train.batch_size)
            segmenter = Segmenter(self.result, canvas=self.canvas)
            found = validate(segmenter, whole, self.dtype, self.class_weights, self.train.loss)
        if self.failed:
            found.fill_(torch.nan)  # which shows in all processes
        totals = torch.cat([sums.view(1, 2), found])
        if self.world > 1:  # Counts are added over the processes first and divided after.
            dist.all_reduce(totals)
            if not torch.isfinite(totals).all():
                self._raise_any(epoch)
        row = make_row(epoch, totals, self.network.depths, self.rate((epoch + 1) * len(self.sizes) - 1))
        if not torch.isfinite(totals).all() or not totals[0, 1]:  # the same everywhere: all processes stop together
            raise UserError(
                f"the loss is not finite any more in epoch {epoch + 1}: {row}; a lower train.learning_rate or a "
                "longer train.warmup_epochs may help"
            )
        return row

    def _raise_any(self, epoch: int) -> None:
        """Raise what went wrong in any process since the last step, in all of them."""
        try:
            raise_any(describe(self.failed) if self.failed else None, self.world)
        except FailedError as error:
            raise UserError(
                f"{error}\nat the end of epoch {epoch + 1} (process {error.rank} of {self.world})"
            ) from None
