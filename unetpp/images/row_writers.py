"""Writes pictures larger than memory row by row: tiled TIFF that keeps its georeference, and PNG."""

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Full, Queue

import numpy as np

from unetpp.images.tiff_pages import missing
from unetpp.images.tiff_windows import RESOLUTION, Tag

TILE_PX = 256
ACROSS, DOWN, UNIT = RESOLUTION
BIG = 2**32 - 2**25  # bytes from which a TIFF needs 64-bit offsets
WAIT_S = 0.1  # before checking whether the other thread is still alive
Write = Callable[[np.ndarray], None]


@contextmanager
def tiff_rows(path: Path, shape: tuple[int, ...], dtype: np.dtype, tags: Sequence[Tag] = ()) -> Iterator[Write]:
    """A function that takes the rows (n, W) or (n, W, K) of a TIFF in tiles, compressed by Deflate, from top to bottom.

    Args:
        shape: of the whole picture.
        tags: of its image (`tiff_windows.place_tags`).

    Raises:
        FileError: tifffile is not installed.
    """
    try:
        import tifffile
    except ModuleNotFoundError:
        raise missing(path, "a TIFF, which tifffile writes") from None
    given: Queue[np.ndarray | None] = Queue(1)
    is_big, is_colour = math.prod(shape) * dtype.itemsize > BIG, len(shape) == 3 and shape[2] == 3 and dtype == np.uint8

    sizes = {code: value for code, _, _, value, _ in tags}

    def write_all() -> None:
        with tifffile.TiffWriter(path, bigtiff=is_big) as file:
            file.write(
                _tiles(given.get, shape),
                shape=shape,
                dtype=dtype,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb" if is_colour else "minisblack",
                planarconfig="contig" if len(shape) == 3 else None,
                compression="zlib",
                compressionargs={"level": 1},
                maxworkers=1,
                metadata=None,
                software=False,
                extratags=[tag for tag in tags if tag[0] not in RESOLUTION],
                resolution=(sizes[ACROSS], sizes[DOWN]) if {ACROSS, DOWN} <= sizes.keys() else None,
                resolutionunit=sizes.get(UNIT),
            )

    # tifffile pulls tiles, and prediction pushes rows, of several files at once: so each file has a thread.
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write_all)

        def give(rows: np.ndarray | None) -> None:
            while not written.done():
                try:
                    return given.put(rows, timeout=WAIT_S)
                except Full:
                    pass
            written.result()  # raises its error

        try:
            yield give
        finally:  # after an error, too few rows end the thread
            give(None)
        written.result()


def write_tiff(path: Path, plane: np.ndarray) -> None:
    """A plane (H, W) as a TIFF packed by Deflate, in strips: ImageJ opens no tiles.

    Raises:
        FileError: tifffile is not installed.
    """
    try:
        import tifffile
    except ModuleNotFoundError:
        raise missing(path, "a TIFF, which tifffile writes") from None
    tifffile.imwrite(path, plane, photometric="minisblack", compression="zlib", metadata=None, software=False)


def _tiles(get: Callable[[], np.ndarray | None], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The tiles of a picture that arrives in rows, row of tiles by row of tiles; None is its end."""
    band = np.zeros((0, *shape[1:]))
    for top in range(0, shape[0], TILE_PX):
        least = min(TILE_PX, shape[0] - top)
        while len(band) < least:
            rows = get()
            if rows is None:
                raise EOFError(f"found {top + len(band)} rows; expected {shape[0]}")
            band = np.concatenate([band, rows]) if len(band) else rows
        for left in range(0, shape[1], TILE_PX):
            tile = np.zeros((TILE_PX, TILE_PX, *shape[2:]), band.dtype)
            part = band[:least, left : left + TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile
        band = band[least:]
    get()  # the end


@contextmanager
def png_rows(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[Write]:
    """As `tiff_rows`, for a PNG (H, W) uint8 or uint16, or (H, W, 3) uint8."""
    assert dtype in (np.uint8, np.uint16)
    packer, colour = zlib.compressobj(1), 2 if len(shape) == 3 else 0
    with path.open("wb") as file:

        def chunk(kind: bytes, content: bytes) -> None:
            file.write(struct.pack(">I", len(content)) + kind + content)
            file.write(struct.pack(">I", zlib.crc32(kind + content)))

        def write(rows: np.ndarray) -> None:
            content = np.ascontiguousarray(rows, dtype.newbyteorder(">")).view(np.uint8).reshape(len(rows), -1)
            lines = np.pad(content, ((0, 0), (1, 0)))  # each begins with its filter: 0, none
            if packed := packer.compress(lines.tobytes()):
                chunk(b"IDAT", packed)

        file.write(b"\x89PNG\r\n\x1a\n")
        chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8 * dtype.itemsize, colour, 0, 0, 0))
        yield write
        chunk(b"IDAT", packer.flush())
        chunk(b"IEND", b"")
