"""The classic UNet++ and U-Net, node by node from the paper's definition: the reference that ours is held to."""

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

NODES = [(i, j) for i in range(5) for j in range(5 - i)]
Network = TypeVar("Network", bound=nn.Module)


class Named(nn.Module):
    """What is set by a name that is put together is a module."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> nn.Module: ...


class VGGBlock(nn.Module):
    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)))


class ClassicNestedUNet(Named):
    """UNet++ of depth 4 with the names of the widely copied public code."""

    def __init__(self, w: list[int], num_classes: int = 1, in_channels: int = 3, deep_supervision: bool = True):
        super().__init__()
        self.deep_supervision = deep_supervision
        for i, j in NODES:
            below = (in_channels if i == 0 else w[i - 1]) if j == 0 else w[i] * j + w[i + 1]
            setattr(self, f"conv{i}_{j}", VGGBlock(below, w[i]))
        if deep_supervision:
            for d in range(1, 5):
                setattr(self, f"final{d}", nn.Conv2d(w[0], num_classes, 1))
        else:
            self.final = nn.Conv2d(w[0], num_classes, 1)
        self.pool = nn.MaxPool2d(2, 2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        pool, up, cat = self.pool, self.up, torch.cat
        x0_0 = self.conv0_0(x)
        x1_0 = self.conv1_0(pool(x0_0))
        x0_1 = self.conv0_1(cat([x0_0, up(x1_0)], 1))
        x2_0 = self.conv2_0(pool(x1_0))
        x1_1 = self.conv1_1(cat([x1_0, up(x2_0)], 1))
        x0_2 = self.conv0_2(cat([x0_0, x0_1, up(x1_1)], 1))
        x3_0 = self.conv3_0(pool(x2_0))
        x2_1 = self.conv2_1(cat([x2_0, up(x3_0)], 1))
        x1_2 = self.conv1_2(cat([x1_0, x1_1, up(x2_1)], 1))
        x0_3 = self.conv0_3(cat([x0_0, x0_1, x0_2, up(x1_2)], 1))
        x4_0 = self.conv4_0(pool(x3_0))
        x3_1 = self.conv3_1(cat([x3_0, up(x4_0)], 1))
        x2_2 = self.conv2_2(cat([x2_0, x2_1, up(x3_1)], 1))
        x1_3 = self.conv1_3(cat([x1_0, x1_1, x1_2, up(x2_2)], 1))
        x0_4 = self.conv0_4(cat([x0_0, x0_1, x0_2, x0_3, up(x1_3)], 1))
        if self.deep_supervision:
            return [self.final1(x0_1), self.final2(x0_2), self.final3(x0_3), self.final4(x0_4)]
        return [self.final(x0_4)]


class ClassicUNet(Named):
    """U-Net of depth 4 with the same names."""

    def __init__(self, w: list[int], num_classes: int = 1, in_channels: int = 3):
        super().__init__()
        for i in range(5):
            setattr(self, f"conv{i}_0", VGGBlock(in_channels if i == 0 else w[i - 1], w[i]))
        for i in range(4):
            setattr(self, f"conv{i}_{4 - i}", VGGBlock(w[i] + w[i + 1], w[i]))
        self.final = nn.Conv2d(w[0], num_classes, 1)
        self.pool = nn.MaxPool2d(2, 2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        x0_0 = self.conv0_0(x)
        x1_0 = self.conv1_0(self.pool(x0_0))
        x2_0 = self.conv2_0(self.pool(x1_0))
        x3_0 = self.conv3_0(self.pool(x2_0))
        x4_0 = self.conv4_0(self.pool(x3_0))
        x3_1 = self.conv3_1(torch.cat([x3_0, self.up(x4_0)], 1))
        x2_2 = self.conv2_2(torch.cat([x2_0, self.up(x3_1)], 1))
        x1_3 = self.conv1_3(torch.cat([x1_0, self.up(x2_2)], 1))
        x0_4 = self.conv0_4(torch.cat([x0_0, self.up(x1_3)], 1))
        return [self.final(x0_4)]


def with_lived_in_norms(model: Network) -> Network:
    """Batch norms with statistics other than their first ones, so that a wrong mapping shows; in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"), -0.5, 0.5)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()
