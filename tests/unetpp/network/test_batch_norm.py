"""Batch norm: torch's own on processors, and without a wait or an end of the graph elsewhere."""

import torch
from torch import nn

from unetpp.network.batch_norm import BatchNorm


def seen(norm: nn.Module, called) -> list[torch.Tensor]:
    """What three batches give and leave behind, and the gradient of the weights."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(2):
        called(torch.randn(4, 3, 8, 8, generator=draw))
    output = called(torch.randn(4, 3, 8, 8, generator=draw))
    (output**3).sum().backward()
    return [output.detach(), *(one.grad for one in norm.parameters() if one.grad is not None), *norm.buffers()]


def test_on_processors_it_is_torchs_bit_for_bit_and_compiled_it_is_one_graph_with_the_same_numbers():
    expected, plain, compiled = nn.BatchNorm2d(3, momentum=None), BatchNorm(3), BatchNorm(3)
    wanted = seen(expected, expected)
    assert len(wanted) == 6
    assert all(map(torch.equal, seen(plain, plain), wanted))
    # fullgraph raises where a graph would end, as it does at torch's own.
    found = seen(compiled, torch.compile(compiled, backend="eager", fullgraph=True))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert found[-1] == 3
