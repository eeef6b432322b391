"""What a training computes with in a process: the same in each, before its first step."""

import torch
from torch import nn

from pipelines.training.ddp import set_determinism
from pipelines.training.spec import TrainSpec
from unetpp.data.targets import WithTargets
from unetpp.network.encoders import synchronise
from unetpp.network.masks import MASK
from unetpp.training.loop import choose_precision, make_loss, make_optimizer


class Setup:
    """Threads and kernels are set for this process, the data are open, the network is drawn and on the device.

    Args:
        world: processes; of several, batch norm may be synchronised (on GPUs alone: `train.sync_batchnorm`).

    Attributes:
        dtype: in which convolutions run.
        canvas: what images are padded to, see `Frame`.
        loss: of logits and mask, see `unetpp.training.loop.make_loss`.

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
