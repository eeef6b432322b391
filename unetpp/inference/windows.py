"""Predict images larger than memory: read in windows, with probabilities in strips from top to bottom."""

from collections.abc import Iterator

import numpy as np

from unetpp.data.scaling import measure_parts
from unetpp.engines.engine import Engine
from unetpp.errors import FileError
from unetpp.images.pixels import resize_rows
from unetpp.images.windows import WindowedImage
from unetpp.inference.tiles import fits, own_size_strips, predict_rows, predict_seen, tile_sides

WHOLE_PX = 2**25  # the largest image for an engine that does not accept parts: more would need some ten gigabytes
STRIP_BYTES = 2**28  # of the probabilities of a row of tiles, if the network leaves a choice
BLOCK_PX = 2**22  # read at once if nothing is predicted


def predict_strips(
    engine: Engine, image: WindowedImage, tile_px: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """The probabilities of `predict_image` in strips: first row, and (K, rows, W).

    Memory grows with the width of the image and the size of a tile, not with the height. The image is read twice, first
    to measure its statistics; if training resized whole images, it is read once.

    Args:
        tile_px: as in `tile_sides`.

    Raises:
        FileError: the image cannot be read, or is too large for an engine that does not accept parts.
    """
    (height, width, _), frame = image.shape, engine.about.frame

    def read(top: int, bottom: int) -> np.ndarray:
        return image.read(top, 0, bottom - top, width)

    if frame:
        seen = resize_rows((height, width), read, frame.sides((height, width)))
        yield from own_size_strips(predict_seen(engine, seen), (height, width), max(1, BLOCK_PX // width))
    elif fits(engine, (height, width), tile_px):
        if height * width > WHOLE_PX:
            raise FileError(
                image.path,
                f"found {width}x{height} px, which {engine.name} can only predict as a whole; expected at most "
                f"{WHOLE_PX} pixels",
                "use --engine torch, which predicts in tiles",
            )
        yield 0, predict_seen(engine, read(0, height))
    else:
        tile_px = tile_px or _lower(engine, width)
        step = max(1, BLOCK_PX // width)
        measured = measure_parts(read(top, min(top + step, height)) for top in range(0, height, step))
        yield from predict_rows(engine, (height, width), read, *measured, tile_px)


def _lower(engine: Engine, width: int) -> int:
    """The side of tiles, reduced if the probabilities of a row would take too much memory."""
    return min(tile_sides(engine)[0], max(1, STRIP_BYTES // (4 * width * engine.about.num_outputs)))
