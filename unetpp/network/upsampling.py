"""Upsampling from a level to the one above it: interpolated or learned."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseGradient(torch.autograd.Function):
    """The same tensor, whose gradient is converted to its memory format.

    The gradient of an input of `torch.cat` is a slice of the whole gradient. On CPUs the kernel for the gradient of
    upsampling processes such a slice channel by channel, six times slower than one copy and its fast path: a quarter of
    the whole step at 256x256. The sum of the gradients of a skip, one from each node that reads it, is similar: with
    slices it takes four times as long as with copies, up to a tenth of a step.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return x.expand_as(x)  # `view_as` gives a single image other strides, and `torch.cat` then another layout

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        wanted = torch.channels_last if ctx.channels_last else torch.contiguous_format
        return gradients[0].contiguous(memory_format=wanted)


class Interpolate(nn.Module):
    """Bilinear upsampling to twice the size, without parameters; keeps the channels."""

    def __init__(self, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        # By size instead of by the factor 2: exact, and an exporter can prove that the sizes agree.
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)
        return DenseGradient.apply(x) if self.training else x  # pyright: ignore


def draw_weights(weight: Tensor, **how) -> None:
    """Initialise weights, except on the meta device, for which torch would import code for a second."""
    if not weight.is_meta:
        nn.init.kaiming_normal_(weight, **how)


class Deconvolve(nn.Module):
    """A 2x2 transposed convolution with stride 2 to the channels of the level above, as in the authors' Keras code."""

    def __init__(self, below: int, width: int):
        super().__init__()
        self.conv = nn.ConvTranspose2d(below, width, 2, stride=2)
        draw_weights(self.conv.weight, mode="fan_out", nonlinearity="linear")

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:  # noqa: ARG002 - as `Interpolate`
        return self.conv(x)


# Builds the module that brings a node of the level below, with `below` channels, to the size of level i with `width`
# channels; returns the module and its output channels.
UPSAMPLINGS = {
    "bilinear_aligned": lambda below, _width: (Interpolate(align_corners=True), below),  # as the classic code
    "bilinear": lambda below, _width: (Interpolate(align_corners=False), below),
    "transposed": lambda below, width: (Deconvolve(below, width), width),
}
