"""What each process of a training run sets up before its first step, new or from a checkpoint."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.training.batches import Batches
from pipelines.training.ddp import set_determinism, wrap
from pipelines.training.spec import TrainSpec
from pipelines.training.state import TrainState
from unetpp.data.targets import WithTargets
from unetpp.errors import UserError, said
from unetpp.network.encoders import synchronise
from unetpp.network.masks import MASK
from unetpp.network.model import NestedUNet
from unetpp.training.batch_norm import Statistics
from unetpp.training.ema import Ema
from unetpp.training.loop import choose_precision, encoder_share, make_loss, make_optimizer, make_scaler, schedule
from unetpp.training.step import TrainStep


class Setup:
    """Threads and kernels of this process, the open splits, and a newly initialised network on the device.

    Args:
        world: number of processes; with several, batch norm may be synchronised (`train.sync_batchnorm`, GPUs only).

    Attributes:
        dtype: the type in which convolutions run.
        canvas: the size to which images are padded, see `Frame`.
        loss: computed from logits and mask, see `unetpp.training.loop.make_loss`.

    Raises:
        UserError: the prepared data are missing or damaged.
    """

    def __init__(self, spec: TrainSpec, device: torch.device, world: int = 1):
        self.train, self.device = spec.train, device
        train = spec.train
        torch.set_num_threads(train.cpus_per_worker)
        set_determinism(train.deterministic)
        self.dtype = choose_precision(train.precision, device)
        self.train_split, self.val_split = spec.open_splits()
        self.canvas = spec.manifest.frame.canvas if spec.manifest.frame else None
        torch.manual_seed(train.seed)
        network = self.network = spec.build_network()
        network.checkpoint_levels = train.checkpoint_levels
        network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if train.sync_batchnorm and world > 1:
            (synchronise if network.encoder else nn.SyncBatchNorm.convert_sync_batchnorm)(network)
        self.optimizer = make_optimizer(
            network, train.optimizer, train.learning_rate, train.momentum, train.weight_decay
        )
        weights = spec.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, device=device)
        task = *network.task[1:], network.targets
        if network.targets != MASK:
            self.val_split = WithTargets(self.val_split, network.background)
        self.loss = make_loss(train.loss, train.head_weights, network.depths, self.class_weights, *task)


class Resumable(Setup):
    """A training run as one process holds it: new or restored from a state, and read back as a state.

    Args:
        state: one that `epochs` yielded before; None starts from scratch.
        rank, world: the number of this process, and how many there are.

    Attributes:
        batches: the training batches of this process.
        sizes: the number of samples in each step of an epoch, over all processes.
        step: makes one optimizer step.
        rate: the learning rate of each step.
        resumed: the state that was restored.
    """

    def __init__(self, spec: TrainSpec, device: torch.device, state: TrainState | None, rank: int, world: int):
        super().__init__(spec, device, world)
        self.rank, self.world = rank, world
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
                    f"{file}: the weights do not fit this network ({said(error)}); run `dvc repro search`, or "
                    "set train.init=null"
                ) from None
        elif spec.encoder_weights:
            spec.encoder_weights.load(network)
        if self.ema and state.weights is None:
            self.ema.network.load_state_dict(network.state_dict())
        self.statistics = Statistics(network)
        # If there are more parts than params ask for, memory ran out before (train.on_oom).
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

    @property
    def result(self) -> NestedUNet:
        """The network that is validated, and kept if its epoch is the best."""
        return self.ema.network if self.ema else self.network  # pyright: ignore[reportReturnType]

    def _parts(self, world: int) -> int:
        """In how many parts each of `world` processes computes its share of a batch, according to params.

        With fewer processes, each has a larger share and computes it in more parts: it never holds more images at once
        than at full strength, and batch norm sees as many. Only synchronised batch norm gets the whole share at once.
        """
        train = self.train
        return (
            train.accumulate if train.sync_batchnorm else -(-train.accumulate * max(world, train.max_workers) // world)
        )

    def restore_sums(self) -> Tensor:
        """Restore the running statistics in the middle of an epoch; returns the sums of losses and images so far.

        If the number of processes has changed, process 0 gets the total of the sums, and the statistics are averaged.
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

    def state(self, step: int = 0, sums: Tensor | None = None, stopped: bool = False) -> TrainState:
        """The state that `epochs` yields; inside an epoch (`sums`) it includes each process's sums and statistics."""
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
