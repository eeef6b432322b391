"""TIFF by tifffile: number of pages, header and pixels of a page; files that tifffile might misread are refused.

tifffile fills in missing data and only logs errors, so both are refused here. It and imagecodecs, which decompresses,
are the extra `images`, imported when a TIFF is read.
"""

import logging
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unetpp.errors import FileError, to_install

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 100_000
# None, CCITT, LZW, JPEG, Deflate, PackBits, LZMA, Zstandard. With others (JPEG 2000, JPEG XL, WebP ...) a small file
# can unpack to any size and type, whatever its tags say.
JPEG, COMPRESSIONS = 7, {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
EXTRA_SAMPLES, PHOTOMETRIC, ORIENTATION, XMP, DESCRIPTION = 338, 262, 274, 700, 270
MAX_CHANNELS = 16
ASIDE, MAX_COPIES = 0b101, 64  # of the tag NewSubfileType: a reduced-resolution copy, a transparency mask
PREMULTIPLIED = 1  # colours are multiplied by alpha; 2 is unassociated alpha
# Features that read other files of the folder, or guess the location of pages.
ELSEWHERE = dict.fromkeys(("is_ome", "is_mmstack", "is_ndtiff", "is_scanimage"), False)


class _Log(logging.Filter):
    """The log of tifffile in this thread: nothing is printed, and errors are kept."""

    def __init__(self):
        super().__init__()
        self.thread, self.errors = threading.get_ident(), []

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self.thread:
            return True
        if record.levelno >= logging.ERROR:
            self.errors.append(record.getMessage().rpartition("> ")[2].rstrip("')\""))
        return False


@contextmanager
def logged() -> Iterator[None]:
    """The block in which tifffile runs; ValueError at its end, for errors that it only logs."""
    logger, log = logging.getLogger("tifffile"), _Log()
    logger.addFilter(log)
    try:
        yield
        if log.errors:
            raise ValueError(log.errors[0])
    finally:
        logger.removeFilter(log)


@contextmanager
def opened(path: Path) -> Iterator["TiffFile"]:
    """A TIFF whose pages can be read.

    Raises:
        FileError: tifffile is not installed.
        ValueError: as `logged`; tifffile raises nearly anything else on a broken file.
    """
    try:
        import tifffile
    except ModuleNotFoundError:
        raise missing(path, "a TIFF, which tifffile reads") from None
    with logged(), tifffile.TiffFile(path, **ELSEWHERE) as tif:
        yield tif


def missing(path: Path, what: str) -> FileError:
    """The refusal of a file that needs a package of the extra `images`."""
    return FileError(path, f"found {what}; expected it to be installed", to_install("images"))


def count(path: Path, tif: "TiffFile") -> int:
    """The number of pages.

    Raises:
        FileError: planes without a page.
        ValueError: none, or more than MAX_PAGES, which may be a loop.
    """
    with suppress(IndexError):
        tif.pages.get(MAX_PAGES)
        raise ValueError(f"more than {MAX_PAGES} pages")
    num_pages = len(tif.pages)
    if not num_pages:
        raise ValueError("it declares no page")
    planes, first = (tif.imagej_metadata or {}).get("images", 1), tif.pages.first
    size = (first.imagewidth, first.imagelength, first.samplesperpixel)
    if not all(isinstance(one, int) for one in size):  # a tag with many values, whose product would exhaust memory
        raise ValueError(f"its size is {str(size)[:60]}")
    if num_pages == 1:
        planes = max(planes, tif.series[0].size // max(1, math.prod(size)))
    if planes > num_pages:
        raise FileError(
            path,
            f"found {planes} planes and {num_pages} page headers; expected a header for each plane",
            "save it again as a TIFF of several pages (ImageJ: below 4 GB), or each plane as a separate file",
        )
    return num_pages


def are_channels(tif: "TiffFile", num_pages: int) -> bool:
    """Whether the file itself calls its pages channels, in ImageJ's, OME's or tifffile's metadata."""
    if not 1 < num_pages <= MAX_CHANNELS:
        return False
    imagej, said = tif.imagej_metadata or {}, str(tif.pages.first.tags.valueof(DESCRIPTION, ""))
    if imagej:
        return imagej.get("channels", 1) == num_pages and imagej.get("slices", 1) == imagej.get("frames", 1) == 1
    if "<OME " in said:
        sizes = {axis: int(size) for axis, size in re.findall(r'Size([CZT])="([0-9]+)"', said)}
        return sizes == {"C": num_pages, "Z": 1, "T": 1}
    return any(one.get("axes") == "CYX" for one in tif.shaped_metadata or ())


def are_copies(tif: "TiffFile", num_pages: int) -> bool:
    """Whether all further pages are tagged as reduced-resolution copies or transparency masks: pyramids and COG."""
    if not 1 < num_pages <= MAX_COPIES or tif.pages.first.subfiletype & ASIDE:
        return False
    others = (tif.pages.get(number).aspage() for number in range(1, num_pages))
    return all(page.subfiletype & ASIDE for page in others)


def orientation(page: "TiffPage") -> int:
    """In EXIF's numbers, 1 = upright; by the tag, or by XMP."""
    xmp = re.search(rb'tiff:Orientation(?:="|>)([0-9])', bytes(page.tags.valueof(XMP, b"")))
    tag = page.tags.valueof(ORIENTATION, 1)
    return int(xmp[1]) if tag == 1 and xmp else tag


def photometric(page: "TiffPage") -> int:
    """The photometric interpretation; without a tag, grey or RGB."""
    return page.photometric if PHOTOMETRIC in page.tags else RGB if page.samplesperpixel > 2 else BLACK_IS_ZERO


def alpha(page: "TiffPage") -> int:
    """The type of the last channel: 0 = no alpha, PREMULTIPLIED, 2 = alpha; without a tag, a fourth of RGB is alpha."""
    if EXTRA_SAMPLES not in page.tags:
        return 2 * (photometric(page) == RGB and page.samplesperpixel == 4)
    return page.extrasamples[-1] if page.extrasamples[-1] in (PREMULTIPLIED, 2) else 0


def check_known(path: Path, page: "TiffPage", max_pixels: int) -> None:
    """Refuse by its tags a page that would be misread.

    Raises:
        FileError: an unsupported kind.
        ValueError: parts are missing, outside of the file or larger than the limit.
    """
    channels, kind = page.samplesperpixel - (alpha(page) > 0), photometric(page)
    known = page.dtype is not None and page.dtype.kind in "buif" and page.compression in COMPRESSIONS
    known &= page.imagedepth == page.tiledepth == 1
    if kind == PALETTE:
        known &= page.samplesperpixel == 1 and page.colormap is not None and page.dtype in (bool, np.uint8, np.uint16)
    elif kind == YCBCR:  # a JPEG decoder converts it to RGB
        known &= channels == 3 and page.compression == JPEG
    else:
        least, most = {WHITE_IS_ZERO: (1, 1), BLACK_IS_ZERO: (1, MAX_CHANNELS), RGB: (3, MAX_CHANNELS)}.get(
            kind, (1, 0)
        )
        known &= least <= channels <= most
    aside = ", which it calls a smaller copy or a transparency mask" * bool(page.subfiletype & ASIDE)
    if not known or aside:
        form, packing = (getattr(code, "name", code) for code in (kind, page.compression))
        raise FileError(
            path,
            f"found a TIFF of {channels} channels of {page.bitspersample} bits ({page.dtype or 'unknown type'}, "
            f"photometric {form}, compression {packing}){aside}; expected a picture of 1 to {MAX_CHANNELS} channels: "
            "grey, RGB, several channels, or a palette",
            "save it as one of these, with LZW, Deflate or no compression",
        )
    packed = (page.compression, page.predictor, page.fillorder, page.bitspersample % 8) != (1, 1, 1, 0)
    if packed and find_spec("imagecodecs") is None:
        raise missing(path, "a compressed TIFF, which imagecodecs unpacks")
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    wanted = math.prod(page.chunked)
    whole = sum(at > 0 and num_bytes > 0 for at, num_bytes in parts[:wanted])
    if whole < wanted:
        raise ValueError(f"{wanted - whole} strips or tiles are missing")
    if max(at + num_bytes for at, num_bytes in parts) > page.parent.filehandle.size:
        raise ValueError("strips or tiles are beyond its end")
    if page.is_contiguous and sum(page.databytecounts) < page.nbytes:
        raise ValueError("its strips or tiles are too short")
    if math.prod(page.chunks[:2]) > max(max_pixels, 2**16):
        raise ValueError(f"its tiles have {page.chunks} pixels")
    if page.compression == JPEG:
        _check_jpeg(page, parts)


def _check_jpeg(page: "TiffPage", parts: list[tuple[int, int]]) -> None:
    """The decoder pads truncated data, and takes the size from the JPEG itself."""
    from tifffile.tifffile import jpeg_shape

    for at, num_bytes in parts:
        page.parent.filehandle.seek(at)
        data = page.parent.filehandle.read(num_bytes)
        size = jpeg_shape(data)[1:3]
        if not data.rstrip(b"\0").endswith(b"\xff\xd9") or any(map(int.__gt__, size, page.chunks)):
            raise ValueError("a JPEG in it is truncated or larger than declared")


def decode(page: "TiffPage") -> np.ndarray:
    """The data of a page, in planes (S, H, W, C) of which S or C is 1."""
    return page.asarray(squeeze=False, maxworkers=1)[:, 0]


def as_pixels(path: Path, page: "TiffPage", planes: np.ndarray) -> np.ndarray:
    """(H, W, C) of all or a part of a page's planes, alpha last, 1-bit ones as 0 and 1."""
    pixels = np.ascontiguousarray(np.moveaxis(planes, 0, 2)).reshape(*planes.shape[1:3], -1)
    pixels = pixels.astype(np.uint8 if pixels.dtype == bool else pixels.dtype.newbyteorder("="), copy=False)
    opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1
    if alpha(page) == PREMULTIPLIED and (pixels[:, :, -1] != opaque).any():
        raise FileError(
            path,
            "found colours that are multiplied by their transparency; expected opaque ones",
            "save it without alpha",
        )
    return pixels


def palette(page: "TiffPage") -> np.ndarray | None:
    """The colours (N, 3) uint8 of which the pixels are indices, if they are."""
    if photometric(page) != PALETTE:
        return None
    colours = np.asarray(page.colormap).T
    return (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)  # some are written in 8 bits
