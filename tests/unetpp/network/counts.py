"""How many parameters a network has, counted and in closed form."""

from torch import nn

FULL = (32, 64, 128, 256, 512)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def block_parameters(in_channels: int, width: int) -> int:
    """Closed form: two 3x3 convolutions with bias, two batch norms with scale and shift."""
    return (9 * in_channels * width + width) + (9 * width * width + width) + 4 * width


def dense_parameters(widths: tuple[int, ...], heads: int, in_channels: int = 3, num_classes: int = 1) -> int:
    """Closed form of UNet++."""
    depth = len(widths) - 1
    total = heads * (widths[0] * num_classes + num_classes)
    for i in range(depth + 1):
        total += block_parameters(in_channels if i == 0 else widths[i - 1], widths[i])
        total += sum(block_parameters(j * widths[i] + widths[i + 1], widths[i]) for j in range(1, depth - i + 1))
    return total
