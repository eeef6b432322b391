"""The running statistics of batch norm."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Enough images to estimate the statistics within about one per cent (Wu and Johnson 2021, section 3).
STATISTICS_IMAGES = 1024


def find_batch_norms(network: nn.Module) -> list[nn.BatchNorm2d | nn.SyncBatchNorm]:
    """The layers of a network that keep running statistics."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]


def reset_statistics(network: nn.Module) -> None:
    """Forget all batches: the next batch begins a new mean."""
    for norm in find_batch_norms(network):
        norm.reset_running_stats()


@torch.no_grad()
def recompute_statistics(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, dtype: torch.dtype
) -> None:
    """Set the running statistics to the means over these batches, with the present weights.

    Dropout is off, as in prediction. The result depends only on weights and batches, so there is no state to save.
    """
    network.eval()
    reset_statistics(network)
    for norm in find_batch_norms(network):
        norm.train()
    for image, _ in batches:
        image = image.to(device, non_blocking=True, memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            network(image)
    network.eval()


class Statistics:
    """Save and restore the running statistics of a network and their counts, bit for bit.

    Args:
        network: its buffers are looked up only once, so that saving is cheap.
    """

    def __init__(self, network: nn.Module):
        self._buffers = [buffer for norm in find_batch_norms(network) for buffer in norm.buffers()]

    def keep(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self._buffers]

    def restore(self, kept: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers, kept, strict=True):
            buffer.copy_(value)

    def flat(self) -> Tensor:
        """All statistics as one row (n,) of float64, which represents float32 and the counts exactly."""
        if not self._buffers:
            return torch.zeros(0, dtype=torch.float64)
        return torch.cat([buffer.double().flatten() for buffer in self._buffers])

    def restore_flat(self, row: Tensor) -> None:
        parts = row.split([buffer.numel() for buffer in self._buffers]) if self._buffers else ()
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer.copy_(part.view(buffer.shape))

    def merge(self, rows: Tensor, share: float) -> Tensor:
        """The row for every process after their number has changed, from the rows (processes, n) before.

        Args:
            share: batches that a process now counts per step, divided by those that it counted before: the weight of
                the earlier steps in the mean over the whole epoch.
        """
        row = rows.mean(dim=0)
        is_count = [not buffer.is_floating_point() for buffer in self._buffers for _ in range(buffer.numel())]
        return torch.where(
            torch.tensor(is_count, dtype=torch.bool, device=row.device), (row * share).round().clamp(min=1), row
        )


def average_statistics(network: nn.Module, world: int) -> None:
    """Replace the running statistics, which differ by process, by their mean over all processes."""
    for norm in find_batch_norms(network):
        for buffer in (norm.running_mean, norm.running_var):
            assert buffer is not None
            dist.all_reduce(buffer)
            buffer /= world
