"""From a level to the one above it: upsampling by interpolation or by what is learnt."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseGradient(torch.autograd.Function):
    """The same tensor, whose gradient is brought into its own memory format.

    The gradient of one input of a `torch.cat` is a slice of the whole one, and on processors the kernel for the
    gradient of an upsampling takes such a slice apart by channels, six times slower than one copy and its fast path:
    a quarter of the whole step at 256x256. So is the sum of the gradients of a skip, one from each node that sees it:
    of slices it takes four times as long as of their copies, up to a tenth of a step.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return x.expand_as(x)  # `view_as` gives one image other strides, and `torch.cat` then another layout

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        wanted = torch.channels_last if ctx.channels_last else torch.contiguous_format
        return gradients[0].contiguous(memory_format=wanted)


class Interpolate(nn.Module):
    """Bilinear upsampling to twice the size; it learns nothing and keeps the channels."""

    def __init__(self, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        # The size is given, not the factor 2: exact, and an exporter can prove that the sizes agree.
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)
        return DenseGradient.apply(x) if self.training else x  # pyright: ignore


def draw_weights(weight: Tensor, **how) -> None:
    """Weights to begin with; none on the meta device, for which torch would import a second's worth of code."""
    if not weight.is_meta:
        nn.init.kaiming_normal_(weight, **how)


class Deconvolve(nn.Module):
    """A 2x2 transposed convolution of stride 2 to the channels of the level above, as in the authors' Keras code."""

    def __init__(self, below: int, width: int):
        super().__init__()
        self.conv = nn.ConvTranspose2d(below, width, 2, stride=2)
        draw_weights(self.conv.weight, mode="fan_out", nonlinearity="linear")

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:  # noqa: ARG002 - as `Interpolate`
        return self.conv(x)


# What brings a node of the level below, of `below` channels, to the size of level i of `width` channels:
# the module and its channels.
UPSAMPLINGS = {
    "bilinear_aligned": lambda below, _width: (Interpolate(align_corners=True), below),  # as the classic code
    "bilinear": lambda below, _width: (Interpolate(align_corners=False), below),
    "transposed": lambda below, width: (Deconvolve(below, width), width),
}
