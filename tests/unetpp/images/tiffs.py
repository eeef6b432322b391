"""TIFF files made by hand: kinds that Pillow does not write, and headers that lie."""

import struct
from pathlib import Path
from typing import Literal

import numpy as np

SAMPLES = {"u": 1, "b": 1, "i": 2, "f": 3, "c": 6}


def write_tiff(
    path: Path,
    *pages: np.ndarray,
    order: Literal["<", ">"] = "<",
    big: bool = False,
    tags: dict[int, int] | None = None,
) -> Path:
    """Uncompressed pages (H, W) or (H, W, C) of any type. `tags` stand in place of the true ones, in every page."""
    number, word = ("Q", "Q") if big else ("H", "I")
    kind = 16 if big else 4
    start = {"<": b"II", ">": b"MM"}[order]
    start += struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    content = bytearray(start)
    for index, page in enumerate(pages):
        height, width = page.shape[:2]
        channels = page.shape[2] if page.ndim == 3 else 1
        bits = 8 * page.dtype.itemsize
        values = {256: width, 257: height, 258: bits, 259: 1, 262: 2 if channels > 2 else 1, 277: channels}
        values |= {278: height, 279: page.nbytes, 339: SAMPLES[page.dtype.kind]}
        values |= tags or {}
        lists = {258: channels, 339: channels}  # a value for each channel
        if channels in (2, 4):
            values[338] = 2
        table_bytes = struct.calcsize(order + number) + (len(values) + 1) * (4 + 2 * struct.calcsize(order + word))
        after = len(content) + table_bytes + struct.calcsize(order + word)
        extra = bytearray()
        table = []
        values[273] = 0  # where the pixels are: after the lists
        size = struct.calcsize(order + word)
        for tag, value in sorted(values.items()):
            count = lists.get(tag, 1)
            if count * size <= size:
                table.append(struct.pack(order + "HH" + word + word, tag, kind, 1, value))
            else:
                table.append(struct.pack(order + "HH" + word + word, tag, kind, count, after + len(extra)))
                extra += struct.pack(order + word, value) * count
        pixels_at = after + len(extra)
        at = sorted(values).index(273)
        table[at] = struct.pack(order + "HH" + word + word, 273, kind, 1, pixels_at)
        next_at = pixels_at + page.nbytes if index + 1 < len(pages) else 0
        content += struct.pack(order + number, len(table)) + b"".join(table) + struct.pack(order + word, next_at)
        content += extra + page.astype(page.dtype.newbyteorder(order)).tobytes()
    path.write_bytes(content)
    return path
