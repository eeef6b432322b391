"""The pages of a TIFF and what must be known before one is decoded, from the headers alone.

Pillow knows this of the kinds that it decodes, and only after it has read all that a header points to. Here
are read a few numbers a page, so that a file that declares too much is refused unread, and the count of the
pages of a volume costs a few bytes each. TIFF 6.0, and BigTIFF with its 8-byte offsets.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

MAGICS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
MAX_PAGES = 100_000
TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # the types of whole numbers, as TIFF counts them
SAMPLES = {1: "uint", 2: "int", 3: "float"}
# The tags, each with the value that stands for its absence.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, CHANNELS, SAMPLE = 256, 257, 258, 259, 262, 274, 277, 339
DEFAULTS = {WIDTH: 0, HEIGHT: 0, BITS: 1, COMPRESSION: 1, PHOTOMETRIC: 1, ORIENTATION: 1, CHANNELS: 1, SAMPLE: 1}
LOSSY = {6, 7, 33003, 33005, 34712, 50001}  # JPEG, JPEG 2000, WebP


@dataclass(frozen=True)
class Page:
    """What the header of a page declares."""

    width: int  # px
    height: int  # px
    bits: int  # of a channel
    sample: str  # "uint", "int", "float", or "other"
    channels: int
    photometric: int  # 0 = grey with 0 as white, 1 = grey, 2 = RGB, 3 = palette ...
    orientation: int  # of EXIF: 1 = upright
    lossy: bool  # by its compression


def is_tiff(start: bytes) -> bool:
    """By the first four bytes of a file."""
    return start[:4] in MAGICS


def read_pages(file: BinaryIO) -> list[Page]:
    """The pages of an open TIFF, in order.

    Raises:
        ValueError, struct.error: it is cut, runs in circles, or has too many pages.
    """
    start = file.read(16)
    order, big = MAGICS[start[:4]], b"+" in start[2:4]
    number, word = ("Q", "Q") if big else ("H", "I")
    (offset,) = struct.unpack_from(order + word, start, 8 if big else 4)
    pages, seen = [], set()
    while offset:
        if offset in seen:
            raise ValueError(f"page {len(pages) + 1} leads back to an earlier one")
        if len(pages) == MAX_PAGES:
            raise ValueError(f"more than {MAX_PAGES} pages")
        seen.add(offset)
        entry = struct.Struct(order + "HH" + word + word)
        file.seek(offset)
        (count,) = _unpack(order + number, file)
        table = file.read(count * entry.size) if count < 2**16 else b""
        if len(table) < count * entry.size:
            raise ValueError(f"the header of page {len(pages) + 1} is cut")
        (offset,) = _unpack(order + word, file)
        pages.append(_page(file, order, word, entry, table))
    if not pages:
        raise ValueError("it declares no page")
    return pages


def _page(file: BinaryIO, order: str, word: str, entry: struct.Struct, table: bytes) -> Page:
    values: dict[int, int] = dict(DEFAULTS)
    for at in range(0, len(table), entry.size):
        tag, kind, count, inline = entry.unpack_from(table, at)
        if tag not in values or kind not in TYPES or not count:
            continue
        one = struct.Struct(order + TYPES[kind])
        # A value a channel, and a channel more or less changes nothing: the largest of the first ones.
        count = min(count, 16)
        if count * one.size <= struct.calcsize(order + word):
            raw = table[at + entry.size - struct.calcsize(order + word) : at + entry.size]
        else:
            file.seek(inline)
            raw = file.read(count * one.size)
        values[tag] = max(one.unpack_from(raw, index * one.size)[0] for index in range(count))
    return Page(
        values[WIDTH],
        values[HEIGHT],
        values[BITS],
        SAMPLES.get(values[SAMPLE], "other"),
        values[CHANNELS],
        values[PHOTOMETRIC],
        values[ORIENTATION],
        values[COMPRESSION] in LOSSY,
    )


def _unpack(form: str, file: BinaryIO) -> tuple:
    return struct.unpack(form, file.read(struct.calcsize(form)))
