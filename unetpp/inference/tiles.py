"""Predict large images in overlapping tiles, a row of tiles at a time, with the same probabilities.

Every tile is standardised with the statistics of the whole image, so that it looks as it does in its image. An output
pixel depends on input that is at most `receptive_px` away. At this distance from the border of a tile, the tile and
the whole image give the same values, and pixels nearer to the border are not used: tiles overlap by twice this distance
plus a strip in which one tile is blended into the next.

With batch norm and `bilinear` or `transposed` upsampling the result equals that of the whole image up to rounding.
Three operations depend on all of their input and differ slightly: group norm and instance norm (whose statistics are
the tile's), and `bilinear_aligned`, which scales each level by (h - 1) / (2h - 1), a ratio that depends on the size.
Blending avoids seams there. docs/serving.md gives measured differences.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from unetpp.data.scaling import channels_first, measure_parts, scaled
from unetpp.engines.engine import Engine
from unetpp.images.frame import Frame, Size
from unetpp.images.pixels import resize

TILE_PX = 1024  # images up to this side are predicted as a whole
FADE_PX = 32
# The side of a tile from this halo on: the lowest cost per pixel, or nearly so with half the memory
# (benchmarks/windows.md). Several tiles at once are not faster, because they no longer fit into the caches.
CHEAPEST = ((0, 256), (24, 608), (100, 1024))
TILE_BYTES = 640 * 2**20  # per tile, so that an image with sides of 20,000 px takes less than a gigabyte
# Memory per pixel by engine, as a share of torch's in fp32 (benchmarks/windows.md).
HELD = {"onnxruntime": 1.15, "torch-bf16": 0.7, "torch-fp16": 0.7, "openvino-bf16": 0.65, "openvino-int8": 0.4}


def spans(length: int, tile: int, halo: int, fade: int, multiple: int = 1) -> list[tuple[int, np.ndarray]]:
    """The starts of equal tiles along one side, with weights of their pixels; the weights of all tiles add up to 1.

    Args:
        tile: the longest side allowed; as many tiles as needed share the length evenly.
        multiple: tiles start at multiples of it and have such sides.
    """
    overlap, length = 2 * halo + fade, math.ceil(length / multiple) * multiple
    number = max(1, math.ceil((length - overlap) / (tile - overlap)))
    step = max(1, math.ceil((length - overlap) / number / multiple)) * multiple
    side = min(length, step + overlap)
    number = max(1, math.ceil((length - overlap) / step))
    starts = [min(index * step, length - side) for index in range(number)]
    ramp = ((np.arange(fade) + 0.5) / fade).astype(np.float32)
    found = []
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        weights = np.ones(side, np.float32)
        if start > 0:
            weights[:halo] = 0
            weights[halo : halo + fade] = ramp
        if after is not None:
            end = after - start + halo  # where the next fades in
            weights[end : end + fade] -= ramp
            weights[end + fade :] = 0
        found.append((start, weights))
    return found


def tile_sides(engine: Engine, tile_px: int | None = None) -> tuple[int, int, int]:
    """The longest side, halo and fade of an engine's tiles, in px.

    Args:
        tile_px: by default the side with the lowest cost per output pixel (benchmarks/windows.md), or less if the last
            node would take more than `TILE_BYTES`; it is raised if the receptive field of the network would leave no
            usable pixels in the middle of a tile.
    """
    about = engine.about
    multiple = 2**about.depth  # a tile that starts at a multiple of this is pooled like the whole image
    fade = math.ceil(FADE_PX / multiple) * multiple
    halo = math.ceil(about.receptive_px / multiple) * multiple
    if tile_px is None:
        # Memory peaks at X[0, depth]: its skips, the upsampled node below, and their concatenation, in fp32.
        held = 4 * 2 * (about.depth * about.widths[0] + about.widths[1]) * HELD.get(engine.name.partition(",")[0], 1)
        most = math.isqrt(int(TILE_BYTES / held))
        tile_px = min(max(least for reach, least in CHEAPEST if halo >= reach), most // multiple * multiple)
    return max(math.ceil(tile_px / multiple) * multiple, 4 * halo + fade), halo, fade


def fits(engine: Engine, sides: Sequence[int], tile_px: int | None = None) -> bool:
    """Whether an image of these sides is predicted as a whole."""
    return max(sides) <= (tile_sides(engine, tile_px)[0] if tile_px else TILE_PX) or not engine.takes_parts


def predict_rows(
    engine: Engine,
    shape: Size,
    read: Callable[[int, int], np.ndarray],
    limits: tuple[float, float],
    statistics: np.ndarray,
    tile_px: int | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Probabilities of a large image from top to bottom, one row of tiles at a time: first row, and (K, rows, W).

    Args:
        shape: height and width.
        read: returns the rows from the first index to before the second, (rows, W, C) uint8, uint16 or float32.
        limits, statistics: of the whole image, from `measure_parts`.
        tile_px: as in `tile_sides`.
    """
    height, width = (max(side, least) for side, least in zip(shape, engine.about.canvas or shape, strict=True))
    (tile, halo, fade), multiple = tile_sides(engine, tile_px), 2**engine.about.depth
    faded = None  # the last rows of the tiles above, which are blended into these
    across = spans(width, tile, halo, fade, multiple)
    width = across[-1][0] + len(across[-1][1])
    for top, weights in spans(height, tile, halo, fade, multiple):
        bottom, is_last = top + len(weights), top + len(weights) >= height
        band = read(min(top, shape[0] - 1), min(bottom, shape[0]))
        used = slice(halo if top else 0, np.flatnonzero(weights)[-1] + 1)
        total = None
        for left, shares in across:
            columns = slice(left, left + len(shares))
            part = band[:, min(left, shape[1] - 1) : columns.stop]
            lacking = len(weights) - part.shape[0], len(shares) - part.shape[1]
            if any(lacking):
                part = np.pad(part, (*((0, count) for count in lacking), (0, 0)), mode="edge")
            found = engine(channels_first(scaled(part, limits))[None], statistics)[0][:, used]
            if total is None:  # the number of channels depends on the engine
                total = np.zeros((len(found), found.shape[1], width), np.float32)
            total[..., columns] += found * (weights[used, None] * shares)
        assert total is not None
        if faded is not None:
            total[:, :fade] += faded
        faded = total[:, -fade:].copy()
        rows = total[:, : None if is_last else -fade, : shape[1]]
        top += used.start
        if top < shape[0]:
            yield top, rows[:, : shape[0] - top]


def predict_tiled(engine: Engine, images: np.ndarray, tile_px: int | None = None) -> np.ndarray:
    """The result of `engine(images)`, in tiles if the images are large.

    Args:
        images: (N, C, H, W) float32 in [0, 1].
        tile_px: images with longer sides are cut into tiles of this side; by default, above `TILE_PX`, into those of
            `tile_sides`.

    Returns:
        probabilities (N, num_outputs, H, W).
    """
    if fits(engine, images.shape[-2:], tile_px):
        return engine(images)
    return _joined([predict_large(engine, image.transpose(1, 2, 0), (0.0, 1.0), tile_px) for image in images])


def predict_large(
    engine: Engine, image: np.ndarray, limits: tuple[float, float] | None = None, tile_px: int | None = None
) -> np.ndarray:
    """Probabilities (num_outputs, H, W) of an image (H, W, C) uint8, uint16 or float32, predicted in tiles."""
    shape, measured = image.shape[:2], measure_parts([image], limits)
    probs = None
    for top, rows in predict_rows(engine, shape, lambda top, bottom: image[top:bottom], *measured, tile_px):
        if probs is None:
            probs = np.empty((len(rows), *shape), np.float32)
        probs[:, top : top + rows.shape[1]] = rows
    assert probs is not None
    return probs


def _joined(each: list[np.ndarray]) -> np.ndarray:
    """Concatenate arrays; a single array is not copied."""
    return each[0][None] if len(each) == 1 else np.stack(each)


def predict_image(engine: Engine, image: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Probabilities (num_outputs, H, W) of an image (H, W, C) uint8, uint16 or float32, in tiles if it is large.

    If training resized whole images, the image is resized, too, and the probabilities are scaled back to its own size.

    Args:
        limits: the values that become 0 and 1, by default `find_limits`.
    """
    return to_own_size(predict_resized(engine, [image], limits), image.shape[:2])[0]


def predict_resized(
    engine: Engine, images: Sequence[np.ndarray], limits: tuple[float, float] | None = None
) -> np.ndarray:
    """As `predict_image`, for N images of one size, but at the size that the network sees: (N, num_outputs, h, w)."""
    frame = engine.about.frame
    seen = [resize(image, frame.sides(image.shape)) if frame else image for image in images]
    if fits(engine, seen[0].shape[:2]):
        return engine(as_batch(seen, None, limits))
    return _joined([predict_large(engine, image, limits) for image in seen])


def predict_seen(engine: Engine, image: np.ndarray) -> np.ndarray:
    """Probabilities (num_outputs, H, W) of an image (H, W, C) that already has the size that the network sees."""
    if fits(engine, image.shape[:2]):
        return engine(as_batch([image], None))[0]
    return predict_large(engine, image)


def as_batch(
    images: Sequence[np.ndarray], frame: Frame | None, limits: tuple[float, float] | None = None
) -> np.ndarray:
    """Images (H, W, C) of one size as a batch for the network: (N, C, h, w) float32 in [0, 1]."""
    seen = (resize(image, frame.sides(image.shape)) if frame else image for image in images)
    return np.stack([channels_first(scaled(image, limits)) for image in seen])


def to_own_size(probs: np.ndarray, shape: Size) -> np.ndarray:
    """Scale probabilities (N, K, h, w) to the images' own size, (N, K, H, W): bilinear, like align_corners=False."""
    if probs.shape[-2:] == tuple(shape):
        return probs
    return _stretched(_stretched(probs, -2, np.arange(shape[0]), shape[0]), -1, np.arange(shape[1]), shape[1])


def own_size_strips(probs: np.ndarray, shape: Size, step: int) -> Iterator[tuple[int, np.ndarray]]:
    """`to_own_size` of (K, h, w) in strips of `step` rows: first row, and (K, rows, W)."""
    for top in range(0, shape[0], step):
        rows = np.arange(top, min(top + step, shape[0]))
        yield top, _stretched(_stretched(probs, -2, rows, shape[0]), -1, np.arange(shape[1]), shape[1])


def _stretched(probs: np.ndarray, axis: int, places: np.ndarray, side: int) -> np.ndarray:
    """The values at `places` (n,) of an axis that is stretched to `side`."""
    length = probs.shape[axis]
    at = np.clip((places + 0.5) * (length / side) - 0.5, 0, length - 1)
    lower = at.astype(int)
    share = (at - lower).astype(np.float32).reshape((-1, 1) if axis == -2 else -1)
    first, second = (np.take(probs, index, axis, mode="clip") for index in (lower, lower + 1))
    first *= 1 - share
    second *= share
    first += second
    return first


def to_mask(probs: np.ndarray, num_classes: int, multilabel: bool = False, threshold: float = 0.5) -> np.ndarray:
    """The mask (N, H, W) uint8 of probabilities (N, K, H, W): `unetpp.network.masks.to_mask` in numpy.

    Args:
        threshold: the lowest probability of foreground, or of a label; of several classes the most probable one is
            chosen.
    """
    probs = probs[:, :num_classes]
    if multilabel:
        bits = (1 << np.arange(probs.shape[1])).reshape(-1, 1, 1)
        return ((probs >= threshold) * bits).sum(axis=1).astype(np.uint8)
    if probs.shape[1] == 1:
        return (probs[:, 0] >= threshold).astype(np.uint8)
    return probs.argmax(axis=1).astype(np.uint8)
