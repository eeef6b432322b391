"""Augmentation of batches on the training device, for cases in which the CPU cannot keep up with it.

The CPU reads, crops (a view of the mapped file) and draws; the device scales, moves, colours and standardises. The
draws are those of `unetpp.data.augment`, so both give the same training except for rounding. The order of operations on
an image is fixed, so that an image is the same alone and in any batch.
"""

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unetpp.data.crops import Crops, Key, draw_exposure, draw_seeds
from unetpp.data.loader import find_sample, stack
from unetpp.data.scaling import STD_FLOOR
from unetpp.data.symmetries import Flips, draw_symmetry, find_group
from unetpp.data.targets import CropsWithTargets
from unetpp.data.warp import Warp


class Draw(NamedTuple):
    """The changes of a sample: three flags, then contrast and brightness (`draw_exposure`), and hue in degrees."""

    transposed: float = 0
    flipped_rows: float = 0
    flipped_columns: float = 0
    contrast: float = 1
    brightness: float = 0
    hue: float = 0


def draw(key: Key, flips: Flips, quarter_turns: bool, brightness: float, hue: int, channels: int) -> Draw:
    """The draws that `Augment` makes for a key, with arguments of the same names."""
    seeds = draw_seeds(key)
    result = Draw(*draw_symmetry(find_group(flips, quarter_turns), seeds[2]), *draw_exposure(key, brightness))
    if hue > 0 and channels == 3 and (stream := random.Random(seeds[4])).random() < 0.5:
        result = result._replace(hue=2 * stream.uniform(-hue, hue))
    return result


class RawSamples:
    """Samples of a split for `Loader`: unchanged crops, and the draws for them.

    Args:
        limits: flips, quarter_turns, brightness, hue and channels, as in `unetpp.data.augment.Augment`.
    """

    def __init__(self, split, crops: Crops | Warp | CropsWithTargets, seed: int, **limits):
        self.split, self.crops, self.seed, self._limits = split, crops, seed, limits

    def make(self, number: int, epoch: int) -> tuple[np.ndarray, ...]:
        """Image (H, W, C), mask (H, W), draw (6,), the values that become 0 and 1 (2,), mean and std (2, C)."""
        split = self.split
        index, key = find_sample(split, number, epoch, self.seed)
        image, mask = split[index]
        image, mask = self.crops(image, mask, key, split.spots(index))
        if image.dtype == np.uint16:
            image = image.astype(np.int32)  # torch has few operations for uint16
        drawn = np.array(draw(key, **self._limits), np.float32)
        return image, mask, drawn, np.array(split.limits(index), np.float32), np.stack(split.moments(index))

    def stack(self, samples: list[tuple[np.ndarray, ...]]) -> tuple[Tensor, ...]:
        return tuple(stack(samples))


def augment_batches(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `RawSamples` for the network: image (N, C, H, W) float and mask (N, H, W) on the device."""
    for batch in batches:
        yield augment_batch(*(tensor.to(device, non_blocking=True) for tensor in batch))


def augment_batch(image: Tensor, mask: Tensor, draws: Tensor, limits: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Augment one batch on its own device.

    Args:
        image: (N, H, W, C) uint8, int32 or float32.
        mask: (N, H, W).
        draws: (N, 6), see `Draw`.
        limits: (N, 2), see `find_limits`.
        moments: (N, 2, C), mean and standard deviation of the whole scaled image.

    Returns:
        image (N, C, H, W) float32, standardised, and mask (N, H, W).

    Raises:
        ValueError: images that are not square, whose shape a quarter turn would change.
    """
    transposed, flipped_rows, flipped_columns, contrast, brightness, hue = draws.unbind(1)
    if image.shape[1] == image.shape[2]:
        image, mask = (_where(transposed, one.transpose(1, 2), one) for one in (image, mask))
    elif transposed.any():
        raise ValueError(f"found images of {tuple(image.shape[1:3])} px; expected square ones: set train.crop_px")
    for flags, axis in ((flipped_rows, 1), (flipped_columns, 2)):
        image, mask = (_where(flags, one.flip(axis), one) for one in (image, mask))

    low, high = limits.double().unbind(1)
    extent = torch.where(high > low, high - low, 1.0)
    # Each channel contiguous: CPUs are slow with three interleaved values.
    scaled = image.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)  # (N, C, H, W)
    scaled.sub_(_column(low)).div_(_column(extent))
    if scaled.shape[1] == 3:
        scaled = _where(hue, _turn_hue(scaled, _column(hue)[:, 0]), scaled)
    of_mean, of_std = moments[..., None, None].unbind(1)  # (N, C, 1, 1)
    scaled.sub_(of_mean).mul_(_column(contrast)).add_(_column(brightness) * of_std)
    return scaled.div_(of_std + STD_FLOOR), mask


def _column(values: Tensor) -> Tensor:
    """(N,) to (N, 1, 1, 1) float32."""
    return values.float().view(-1, 1, 1, 1)


def _where(flags: Tensor, changed: Tensor, kept: Tensor) -> Tensor:
    """The changed images where the flag is not zero, else the unchanged ones."""
    return torch.where((flags != 0).view(-1, *[1] * (kept.ndim - 1)), changed, kept)


def _turn_hue(image: Tensor, degrees: Tensor) -> Tensor:
    """Shift the hue of images (N, 3, H, W) in [0, 1]; saturation and value are kept, so grey stays grey."""
    red, green, blue = image.unbind(1)
    value = image.amax(dim=1)
    chroma = value - image.amin(dim=1)
    span = torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(
        value == red,
        (green - blue) / span,
        torch.where(value == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    sixths = sixths + degrees / 60
    channels = []
    for offset in (5, 3, 1):
        place = torch.remainder(sixths + offset, 6)
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, dim=1)
