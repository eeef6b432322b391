"""PNG files made by hand, so that they may declare anything."""

import struct
import zlib


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits, rows, colour=0, interlaced=False, extra=b""):
    """A PNG made by hand: grey, or of another colour type."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra
    return start + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def deep_png(pixels, interlaced=False, extra=b""):
    """(H, W, C) uint16 as a PNG."""
    height, width, channels = pixels.shape
    parts = [pixels[y::dy, x::dx] for y, x, dy, dx in (ADAM7 if interlaced else ((0, 0, 1, 1),))]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts if part.size for row in part)
    return png(width, height, 16, rows, {1: 0, 2: 4, 3: 2, 4: 6}[channels], interlaced, extra)
