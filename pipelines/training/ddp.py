"""The network as a training step calls it: compiled, exchanging gradients, with deterministic kernels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils import deterministic

from unetpp.training.batch_norm import Statistics

if TYPE_CHECKING:  # else the benchmarks on a GPU would need pydantic
    from pipelines.core.training_sections import Train


def wrap(network: nn.Module, train: Train, device: torch.device, world: int) -> nn.Module:
    """The network as a step calls it: compiled if params ask for it, with gradients averaged over processes."""
    called: Any = torch.compile(network, mode=train.compile) if train.compile else network
    if world == 1:
        return called
    wrapped = DistributedDataParallel(
        called,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=train.static_graph,
        # Otherwise rank 0's running statistics would replace those of the others before each step, and their mean
        # (`average_statistics`) would contain rank 0's images only.
        forward_sync_buffers=False,
    )
    if train.compress_gradients == "bf16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    _settle_buckets(wrapped, network, device, world)
    return wrapped


def _settle_buckets(wrapped: nn.Module, network: nn.Module, device: torch.device, world: int) -> None:
    """Make DistributedDataParallel put its gradients into their final order before the first step.

    It does so after the first pass of a process. With more than two processes, this order decides how sums are rounded:
    without this pass, the first step after a restart would differ from that of an uninterrupted training run.
    """
    if world <= 2:
        return
    statistics = Statistics(network)
    kept, side = statistics.keep(), 2 ** (len(network.widths) + 1)  # pyright: ignore[reportArgumentType]
    image = torch.zeros(2, network.in_channels, side, side, device=device)  # pyright: ignore[reportArgumentType]
    torch.stack([logits.sum() for logits in wrapped(image)]).sum().backward()
    network.zero_grad(set_to_none=True)
    statistics.restore(kept)


def set_determinism(wanted: bool) -> None:
    """Use deterministic kernels, or else the fastest ones, found by trying."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    # No code here reads memory that it has not written.
    deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = not wanted
