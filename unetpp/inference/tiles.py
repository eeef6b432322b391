"""Large images in overlapping tiles: the same probabilities at a memory that does not grow with the image.

Every tile is standardised by the statistics of the whole image, so that a tile is as bright as it is in its image. A
pixel of the network's answer depends on input at most `receptive_px` away. So far from a tile's border the tile and the
whole image give the same numbers, and nearer ones are not used: tiles overlap by twice that distance and a strip more,
in which one tile fades into the next.

With batch norm and `bilinear` or `transposed` upsampling the result equals that of the whole image up to rounding.
Three things look at all of their input, and differ a little: group norm and instance norm (their statistics are the
tile's), and `bilinear_aligned`, which stretches each level by (h - 1) / (2h - 1), a ratio that depends on the size.
There the fading keeps seams away. docs/serving.md says how much was measured.
"""

import math
from collections.abc import Sequence

import numpy as np

from unetpp.data.scaling import channels_first, measure_statistics, scaled
from unetpp.engines.engine import Engine
from unetpp.images.frame import Frame
from unetpp.images.pixels import resize
from unetpp.models.about import About

TILE_PX = 1024  # images up to this side are predicted as a whole
FADE_PX = 32


def spans(length: int, tile: int, halo: int, fade: int) -> list[tuple[int, np.ndarray]]:
    """Where tiles start along one side, and the weight of each of their pixels; at every pixel they add up to 1."""
    step = tile - 2 * halo - fade
    starts = range(0, max(1, length - tile + step), step) if length > tile else range(1)
    ramp = ((np.arange(fade) + 0.5) / fade).astype(np.float32)
    found = []
    for start in starts:
        weights = np.ones(min(tile, length - start), np.float32)
        if start > 0:
            weights[:halo] = 0
            weights[halo : halo + fade] = ramp
        if start + tile < length:
            weights[tile - halo :] = 0
            weights[tile - halo - fade : tile - halo] = 1 - ramp
        found.append((start, weights))
    return found


def tile_sides(about: About, tile_px: int = TILE_PX) -> tuple[int, int, int]:
    """Side, halo and fade of the tiles for a network, in px.

    Args:
        tile_px: raised where the network looks so far that it would leave no room in the middle of a tile.
    """
    multiple = 2**about.depth  # a tile that starts at a multiple of it is pooled as the whole image is
    fade = math.ceil(FADE_PX / multiple) * multiple
    halo = math.ceil(about.receptive_px / multiple) * multiple
    return max(math.ceil(tile_px / multiple) * multiple, 4 * halo + fade), halo, fade


def predict_tiled(engine: Engine, images: np.ndarray, tile_px: int = TILE_PX) -> np.ndarray:
    """What `engine(images)` gives, by tiles where a side is longer than `tile_px`.

    Args:
        images: (N, C, H, W) float32 in [0, 1].
        tile_px: as of `tile_sides`.

    Returns:
        probabilities (N, num_classes, H, W).
    """
    own, canvas = images.shape[-2:], engine.about.canvas
    height, width = (max(side, least) for side, least in zip(own, canvas or own, strict=True))
    tile, halo, fade = tile_sides(engine.about, tile_px)
    if max(height, width) <= tile or not engine.takes_parts:
        return engine(images)
    statistics = measure_statistics(images)
    if (height, width) != own:
        images = np.pad(images, ((0, 0), (0, 0), (0, height - own[0]), (0, width - own[1])), mode="edge")
    probs = None
    for top, rows in spans(height, tile, halo, fade):
        for left, columns in spans(width, tile, halo, fade):
            window = (..., slice(top, top + len(rows)), slice(left, left + len(columns)))
            found = engine(images[window], statistics)
            if probs is None:  # how many channels an engine gives is its own affair
                probs = np.zeros((*found.shape[:2], height, width), np.float32)
            probs[window] += found * (rows[:, None] * columns[None, :])  # (h, w)
    assert probs is not None
    return probs[..., : own[0], : own[1]]


def predict_image(engine: Engine, image: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Probabilities (num_classes, H, W) of an image (H, W, C) uint8, uint16 or float32, by tiles where it is large.

    Where training resized whole images, so is this one, and the probabilities return to its own size.

    Args:
        limits: what is scaled to 0 and 1, by default `find_limits`.
    """
    return to_own_size(predict_resized(engine, [image], limits), image.shape[:2])[0]


def predict_resized(
    engine: Engine, images: Sequence[np.ndarray], limits: tuple[float, float] | None = None
) -> np.ndarray:
    """As `predict_image` for N images of one size, before they return to it: (N, num_classes, h, w)."""
    return predict_tiled(engine, as_batch(images, engine.about.frame, limits))


def as_batch(
    images: Sequence[np.ndarray], frame: Frame | None, limits: tuple[float, float] | None = None
) -> np.ndarray:
    """Images (H, W, C) of one size as a network gets them: (N, C, h, w) float32 in [0, 1]."""
    seen = (resize(image, frame.sides(image.shape)) if frame else image for image in images)
    return np.stack([channels_first(scaled(image, limits)) for image in seen])


def to_own_size(probs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Probabilities (N, K, h, w) at the images' own size, (N, K, H, W): bilinear, as torch with align_corners=False."""
    if probs.shape[-2:] == tuple(shape):
        return probs
    rows, columns = (_weights(length, side) for length, side in zip(probs.shape[-2:], shape, strict=True))
    return rows @ (probs @ columns.T)


def _weights(length: int, side: int) -> np.ndarray:
    """(side, length): how much each of the old pixels is of each of the new ones."""
    place = np.clip((np.arange(side) + 0.5) * (length / side) - 0.5, 0, length - 1)
    lower = np.minimum(place.astype(int), max(0, length - 2))
    found = np.zeros((side, length), np.float32)
    found[np.arange(side), lower] = 1 - (place - lower)
    if length > 1:
        found[np.arange(side), lower + 1] = place - lower
    return found


def to_mask(probs: np.ndarray, multilabel: bool = False, threshold: float = 0.5) -> np.ndarray:
    """(N, num_classes, H, W) probabilities to the (N, H, W) uint8 mask: as `unetpp.network.masks.to_mask`, in numpy.

    Args:
        threshold: from which it is foreground, or a label; of several classes the likeliest is taken.
    """
    if multilabel:
        bits = (1 << np.arange(probs.shape[1])).reshape(-1, 1, 1)
        return ((probs >= threshold) * bits).sum(axis=1).astype(np.uint8)
    if probs.shape[1] == 1:
        return (probs[:, 0] >= threshold).astype(np.uint8)
    return probs.argmax(axis=1).astype(np.uint8)
