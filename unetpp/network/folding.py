"""Fold batch norm into the convolutions: a network without norms that computes the same in eval mode.

In eval mode batch norm is a constant scale and shift per channel, so the convolution before it can include it:
norm(conv(x)) = conv'(x) with weight' = weight * s and bias' = (bias - mean) * s + shift, where
s = gain / sqrt(variance + eps). Group and instance norm depend on the image, and are kept.
"""

import torch
from torch import Tensor, nn

from unetpp.network.model import NestedUNet


def fold(network: NestedUNet) -> NestedUNet:
    """A copy in eval mode with folded batch norms; a plain copy if the network has other norms or none.

    It is a NestedUNet with `norm="none"`, so it can be pruned, saved and run like any other, but should not be trained
    further. Its logits equal those of `network.eval()` up to rounding.
    """
    config = network.config() | {"norm": "none" if network.norm == "batch" else network.norm}
    weights = network.state_dict()
    if network.norm == "batch":
        for node, block in network.nodes.items():
            for n in (1, 2):
                weight, bias = _folded(block.get_submodule(f"conv{n}"), block.get_submodule(f"norm{n}"))
                weights[f"nodes.{node}.conv{n}.weight"], weights[f"nodes.{node}.conv{n}.bias"] = weight, bias
    folded = NestedUNet(**config)
    folded.load_state_dict({key: weights[key] for key in folded.state_dict()})
    folded.to(next(network.parameters()).device)
    return folded.eval()


def _folded(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the combined convolution; computed in float64, so that only the last step rounds."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert conv.bias is not None
    assert norm.running_var is not None
    assert norm.running_mean is not None
    gain = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)  # (C_out,)
    weight = conv.weight.detach().double() * gain.view(-1, 1, 1, 1)
    bias = (conv.bias.detach().double() - norm.running_mean.double()) * gain + norm.bias.detach().double()
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)
