"""The pages of a TIFF and what must be known before one is decoded, from the headers alone.

Pillow knows this of the kinds that it decodes, and only after it has read all that a header points to. Here
are read a few numbers a page, so that a file that declares too much is refused unread, and the count of the
pages of a volume costs a few bytes each. TIFF 6.0, and BigTIFF with its 8-byte offsets.
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGICS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
MAX_PAGES = 100_000
TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # the types of whole numbers, as TIFF counts them
SAMPLES = {1: "uint", 2: "int", 3: "float"}
# The tags, each with the value that stands for its absence.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, CHANNELS, SAMPLE = 256, 257, 258, 259, 262, 274, 277, 339
DEFAULTS = {WIDTH: 0, HEIGHT: 0, BITS: 1, COMPRESSION: 1, PHOTOMETRIC: 1, ORIENTATION: 1, CHANNELS: 1, SAMPLE: 1}
# Strips or tiles: the size of one, and the list of where they are.
ROWS, STRIPS, TILE_WIDTH, TILE_HEIGHT, TILES, PLANES = 278, 273, 322, 323, 324, 284
DEFAULTS |= {ROWS: 2**32 - 1, TILE_WIDTH: 0, TILE_HEIGHT: 0, PLANES: 1}
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
    missing: int  # strips or tiles that its size needs and that it does not list; a decoder would leave zeros there


def is_tiff(start: bytes) -> bool:
    """By the first four bytes of a file."""
    return start[:4] in MAGICS


@dataclass(frozen=True)
class Pages:
    """Where the pages of an open TIFF begin, in order."""

    order: str  # of bytes, as `struct` has it
    big: bool  # BigTIFF
    offsets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def word(self) -> str:
        """The type of an offset."""
        return "Q" if self.big else "I"

    def table(self, file: BinaryIO, index: int) -> bytes:
        """The entries of a page, after which the offset of the next one follows."""
        file.seek(self.offsets[index])
        (count,) = _unpack(self.order + ("Q" if self.big else "H"), file)
        num_bytes = count * struct.calcsize(f"{self.order}HH{self.word}{self.word}")
        table = file.read(num_bytes) if count < 2**16 else b""
        if len(table) < num_bytes:
            raise ValueError(f"the header of page {index + 1} is cut")
        return table


def find_pages(file: BinaryIO) -> Pages:
    """The pages of an open TIFF.

    Raises:
        ValueError, struct.error: it is cut, runs in circles, or has too many pages.
    """
    file.seek(0)
    start = file.read(16)
    pages = Pages(MAGICS[start[:4]], b"+" in start[2:4], ())
    (offset,) = struct.unpack_from(pages.order + pages.word, start, 8 if pages.big else 4)
    offsets: dict[int, None] = {}
    while offset:
        if offset in offsets:
            raise ValueError(f"page {len(offsets) + 1} leads back to an earlier one")
        if len(offsets) == MAX_PAGES:
            raise ValueError(f"more than {MAX_PAGES} pages")
        offsets[offset] = None
        Pages(pages.order, pages.big, (offset,)).table(file, 0)
        (offset,) = _unpack(pages.order + pages.word, file)
    if not offsets:
        raise ValueError("it declares no page")
    return Pages(pages.order, pages.big, tuple(offsets))


def read_page(file: BinaryIO, pages: Pages, index: int) -> Page:
    """What a page declares; ValueError or struct.error where it is cut."""
    table, order, word = pages.table(file, index), pages.order, pages.word
    entry = struct.Struct(f"{order}HH{word}{word}")
    values: dict[int, int] = dict(DEFAULTS)
    listed = {STRIPS: 0, TILES: 0}
    for at in range(0, len(table), entry.size):
        tag, kind, count, inline = entry.unpack_from(table, at)
        if tag in listed:
            listed[tag] = count
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
        max(0, _num_parts(values, bool(listed[TILES])) - max(listed.values())) if any(listed.values()) else 0,
    )


def _num_parts(values: dict[int, int], tiled: bool) -> int:
    """How many strips or tiles a page of this size has."""
    height, width = values[HEIGHT], values[WIDTH]
    planes = values[CHANNELS] if values[PLANES] == 2 else 1
    if not tiled:
        return planes * -(-height // max(1, values[ROWS]))
    return planes * -(-height // max(1, values[TILE_HEIGHT])) * -(-width // max(1, values[TILE_WIDTH]))


class FromPage(io.FileIO):
    """A TIFF whose header leads straight to one of its pages: a decoder need not walk through those before it."""

    def __init__(self, path: Path, pages: Pages, index: int):
        super().__init__(path)
        self.at = 8 if pages.big else 4
        self.first = struct.pack(pages.order + pages.word, pages.offsets[index])

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        data = bytearray(super().read(-1 if size is None else size) or b"")
        for place, byte in enumerate(self.first, start=self.at - start):
            if 0 <= place < len(data):
                data[place] = byte
        return bytes(data)


def _unpack(form: str, file: BinaryIO) -> tuple:
    return struct.unpack(form, file.read(struct.calcsize(form)))
