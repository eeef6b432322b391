"""Large images in overlapping tiles: the same probabilities at a memory that does not grow with the image.

An image is standardised as a whole, and only then cut, so that a tile is as bright as it is in its image. A pixel of
the network's answer depends on input at most `receptive_px` away. So far from a tile's border the tile and the whole
image give the same numbers, and nearer ones are not used: tiles overlap by twice that distance and a strip more, in
which one tile fades into the next.

With batch norm and `bilinear` or `transposed` upsampling the result equals that of the whole image up to rounding.
Three things look at all of their input, and differ a little: group norm and instance norm (their statistics are the
tile's), and `bilinear_aligned`, which stretches each level by (h - 1) / (2h - 1), a ratio that depends on the size.
There the fading keeps seams away. docs/serving.md says how much was measured.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unetpp.data.scaling import scale, standardise
from unetpp.images.frame import Frame
from unetpp.images.pixels import resize
from unetpp.inference.segmenter import Segmenter, pad_to_multiple
from unetpp.network.model import NestedUNet

TILE_PX = 1024  # images up to this side are predicted as a whole
FADE_PX = 32


def receptive_px(network: NestedUNet) -> int:
    """How far from an output pixel an input pixel can lie and still matter: an upper bound, in pixels."""
    reach = {}
    for k in range(network.depth + 1):
        for j in range(k + 1):
            i = k - j
            if j == 0:
                inner = 0 if i == 0 else reach[i - 1, 0] + 2 ** (i - 1)  # a pool looks at the pixel beside, too
            else:
                inner = max(reach[i, j - 1], reach[i + 1, j - 1] + 2 ** (i + 1))  # and so does upsampling
            reach[i, j] = inner + 2 * 2**i  # two 3x3 convolutions
    return reach[0, network.depth]


def _spans(length: int, tile: int, halo: int, fade: int) -> list[tuple[int, Tensor]]:
    """Where tiles start along one side, and the weight of each of their pixels; at every pixel they add up to 1."""
    step = tile - 2 * halo - fade
    starts = range(0, max(1, length - tile + step), step) if length > tile else range(1)
    ramp = (torch.arange(fade) + 0.5) / fade
    spans = []
    for start in starts:
        weights = torch.ones(min(tile, length - start))
        if start > 0:
            weights[:halo] = 0
            weights[halo : halo + fade] = ramp
        if start + tile < length:
            weights[tile - halo :] = 0
            weights[tile - halo - fade : tile - halo] = 1 - ramp
        spans.append((start, weights))
    return spans


def predict_tiled(segmenter: Segmenter, image: Tensor, tile_px: int = TILE_PX) -> Tensor:
    """What `segmenter(image)` gives, by tiles where a side of the image is longer than `tile_px`.

    Args:
        image: (N, C, H, W) float in [0, 1].
        tile_px: raised where the network looks so far that it would leave no room in the middle of a tile.

    Returns:
        probabilities (N, num_classes, H, W).
    """
    network, own = segmenter.network, image.shape[-2:]
    height, width = (max(side, least) for side, least in zip(own, segmenter.canvas or own, strict=True))
    multiple = 2**network.depth  # a tile that starts at a multiple of it is pooled as the whole image is
    fade = math.ceil(FADE_PX / multiple) * multiple
    halo = math.ceil(receptive_px(network) / multiple) * multiple
    tile = max(math.ceil(tile_px / multiple) * multiple, 4 * halo + fade)
    if max(height, width) <= tile:
        return segmenter(image)
    standardised = standardise(image)
    if segmenter.canvas:
        standardised = pad_to_multiple(standardised, 1, (height, width))
    probs = image.new_zeros(0)
    for top, rows in _spans(height, tile, halo, fade):
        for left, columns in _spans(width, tile, halo, fade):
            window = (..., slice(top, top + len(rows)), slice(left, left + len(columns)))
            weights = rows.to(image)[:, None] * columns.to(image)[None, :]  # (h, w)
            found = segmenter.probs(standardised[window])
            if not len(probs):  # how many channels a segmenter gives is its own affair
                probs = image.new_zeros((*found.shape[:2], height, width))
            probs[window] += found * weights
    return probs[..., : own[0], : own[1]]


@torch.inference_mode()
def predict_image(
    network: Callable[[Tensor], Tensor],
    image: np.ndarray,
    frame: Frame | None,
    limits: tuple[float, float] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Probabilities (1, num_classes, H, W) of an image (H, W, C) uint8, uint16 or float32, by tiles where it is large.

    Args:
        network: a `Segmenter`, or what else makes probabilities of images (1, C, H, W) in [0, 1], such as an exported
            model; that one gets the image as a whole, since what it does to the brightness of a tile is not known.
        frame: what whole images were brought to for training, or None. Where they were, so is this one, by the same
            geometry (a network pads by itself), and the probabilities return to its own size.
        limits: what is scaled to 0 and 1, by default `find_limits`.
        device: where the network is, if not on the processor.
    """
    return to_own_size(predict_resized(network, [image], frame, limits, device), image.shape[:2])


@torch.inference_mode()
def predict_resized(
    network: Callable[[Tensor], Tensor],
    images: Sequence[np.ndarray],
    frame: Frame | None,
    limits: tuple[float, float] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """As `predict_image` for N images of one size, before the probabilities return to it: (N, num_classes, h, w)."""
    pixels = [scale(resize(image, frame.sides(image.shape)) if frame else image, limits) for image in images]
    batch = torch.stack(pixels).to(device)
    return predict_tiled(network, batch) if isinstance(network, Segmenter) else network(batch)


def to_own_size(probs: Tensor, shape: tuple[int, int]) -> Tensor:
    """Probabilities (N, K, h, w) at the images' own size, (N, K, H, W)."""
    return F.interpolate(probs, shape, mode="bilinear", align_corners=False)
