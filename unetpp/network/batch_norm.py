"""Batch norm whose running statistics are plain means over all batches since their last reset."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """torch's batch norm without momentum, but without waiting for the GPU.

    torch reads `float(num_batches_tracked)` to weight a batch: at each norm the CPU waits for the GPU, and
    torch.compile breaks the graph. Here the weight stays a tensor on GPUs. On CPUs the computation is torch's, bit for
    bit.
    """

    def __init__(self, width: int):
        super().__init__(width, momentum=None)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not (input.is_cuda or torch.compiler.is_compiling()):
            return super().forward(input)
        means = [self.get_buffer("running_mean"), self.get_buffer("running_var")]
        # With a momentum of 1 these become the statistics of this batch alone.
        found = [torch.zeros_like(one) for one in means]
        output = F.batch_norm(input, found[0], found[1], self.weight, self.bias, True, 1.0, self.eps)
        with torch.no_grad():
            count = self.get_buffer("num_batches_tracked").add_(1)
            for mean, of_batch in zip(means, found, strict=True):
                mean.add_((of_batch - mean) / count)
        return output
