"""Opens a picture file safely: its type, whether it can be decoded, and its pixels as stored.

Pillow decodes all but TIFF (`tiff_pages`) and 16-bit colours in a PNG, which it silently reduces to 8 bits.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from unetpp.errors import FileError
from unetpp.images import tiff_pages
from unetpp.images.frame import Size
from unetpp.images.limits import EXPECTED, Limits, broken, check_pages, check_pixels, check_size, check_upright

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
ORIENTATION = 274  # the tag of EXIF
OPENERS = (
    PngImagePlugin.PngImageFile,
    JpegImagePlugin.jpeg_factory,
    BmpImagePlugin.BmpImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
)
COLOURS = ("L", "LA", "RGB", "RGBA")  # by their number


class Header(NamedTuple):
    """The header of a picture file."""

    format: str  # PNG, TIFF, JPEG, MPO, BMP, WEBP, GIF
    mode: str  # in Pillow's terms, or the number type if it is not unsigned with 8 or 16 bits
    bits: int  # per channel
    channels: int


@dataclass(frozen=True)
class Picture:
    """A decoded page."""

    path: Path
    header: Header
    pixels: np.ndarray  # (H, W, C) in the type of the file
    palette: np.ndarray | None = None  # (N, 3) uint8, of which the pixels are indices
    lossy: bool = False
    white_is_zero: bool = False  # a tag of TIFF
    alpha: bool = False  # the last of the C is transparency, which does not count as a channel

    @property
    def num_channels(self) -> int:
        return self.pixels.shape[2] - self.alpha


def count_pages(path: str | Path, limits: Limits) -> int:
    """How many pages a TIFF has; 1 for any other file.

    Raises:
        FileError: missing, empty, too large, or a broken TIFF.
    """
    path = Path(path)
    check_size(path, limits)
    if not is_tiff(path):
        return 1
    with _named(path), tiff_pages.opened(path) as tif:
        return tiff_pages.count(path, tif)


def picture_size(path: Path, limits: Limits) -> Size:
    """Height and width of the first page of a file, by its header only.

    Raises:
        FileError: missing, empty, too large, or not a picture.
    """
    check_size(path, limits)
    with _named(path):
        if is_tiff(path):
            with tiff_pages.opened(path) as tif:
                return tif.pages.first.imagelength, tif.pages.first.imagewidth
        with path.open("rb") as file:
            width, height = _open(path, file).size
            return height, width


def read_picture(path: Path, page: int | None, limits: Limits) -> Picture:
    """Decode a file, or one page of it (counted from 1), after all checks of its header.

    Raises:
        FileError: missing, empty, broken, too large, rotated by a tag, with several pages if `page` is None, or of a
            kind that would be misread.
    """
    check_size(path, limits)
    with decoding(path):
        return (_read_tiff if is_tiff(path) else _read_other)(path, page, limits)


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """The block in which a file is decoded: an error of a decoder on a broken file names it."""
    with _named(path), warnings.catch_warnings():
        # Decoders warn about odd metadata. Files that they can decode anyway are accepted, others raise.
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """On a broken file, a decoder raises nearly anything: OSError, SyntaxError, ValueError, struct.error ..."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        raise broken(path, error) from None


def is_tiff(path: Path) -> bool:
    """Whether a file begins like a TIFF, whatever its name."""
    with path.open("rb") as file:
        return file.read(4) in tiff_pages.MAGICS


def _read_other(path: Path, number: int | None, limits: Limits) -> Picture:
    # We close the file: Pillow keeps it open if decoding fails.
    with path.open("rb") as file:
        image = _open(path, file)  # only its header
        check_pixels(path, *image.size, limits)
        moving = image.format in ("PNG", "WEBP", "GIF")  # an MPO's second picture is a preview
        check_pages(path, getattr(image, "n_frames", 1) if moving else 1, number, "")
        image.verify()  # the checksums of a PNG, which loading ignores
        image = _open(path, file)
        check_upright(path, image.getexif().get(ORIENTATION, 1))
        bits = _png_bits(file) if image.format == "PNG" else 1 if image.mode == "1" else 8
        header = Header(str(image.format), image.mode, bits, len(image.getbands()))
        if header.mode not in ("1", "P", "I;16", *COLOURS):
            raise FileError(
                path, f"found colours of type {header.mode}; expected grey, RGB or RGBA", "convert the image to RGB"
            )
        if bits == 16 and header.mode in COLOURS:
            pixels = _read_deep_png(path, file)
        else:
            image.load()
            pixels = np.asarray(image)
    palette = None
    if header.mode == "P":
        palette = np.zeros((256, 3), np.uint8)
        colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette[: len(colours)] = colours
        # A GIF has grey values only as a palette, in the order in which its writer found them.
        if header.format == "GIF" and (palette == palette[:, :1]).all():
            pixels, palette = palette[pixels][..., 0], None
    elif header.mode == "1":
        pixels = pixels.astype(np.uint8)
    elif bits < 8:
        pixels = pixels // (255 // (2**bits - 1))  # Pillow stretches 2- and 4-bit grey to 0 ... 255
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    alpha = pixels.shape[2] in (2, 4)
    return Picture(path, header, pixels, palette, lossy=_is_lossy(header.format, path), alpha=alpha)


def _read_tiff(path: Path, number: int | None, limits: Limits) -> Picture:
    with tiff_pages.opened(path) as tif:
        pages = choose_pages(path, tif, number, limits)
        return tiff_picture(path, pages, [tiff_pages.decode(page) for page in pages])


def choose_pages(path: Path, tif: "TiffFile", number: int | None, limits: Limits) -> list["TiffPage"]:
    """The pages of a TIFF that form the picture: one, or one per channel if the file says so.

    Raises:
        FileError, ValueError: as `read_picture`, by their tags only.
    """
    chosen, num_pages = [(number or 1) - 1], tiff_pages.count(path, tif)
    if number is None and tiff_pages.are_channels(tif, num_pages):
        chosen = list(range(num_pages))
    elif number is not None or not tiff_pages.are_copies(tif, num_pages):
        hint = ", or set prepare.pages to slices" if limits.name.startswith("prepare.") else ""
        check_pages(path, num_pages, number, hint)
    pages = [tif.pages.get(one).aspage() for one in chosen]
    for page in pages:
        check_pixels(path, page.imagewidth, page.imagelength, limits)
        check_upright(path, tiff_pages.orientation(page))
        tiff_pages.check_known(path, page, limits.max_pixels)
    return pages


def tiff_picture(path: Path, pages: list["TiffPage"], planes: list[np.ndarray]) -> Picture:
    """A picture, or a part of it, from the data of its pages, (S, H, W, C) each."""
    page, each = pages[0], [tiff_pages.as_pixels(path, *one) for one in zip(pages, planes, strict=True)]
    pixels = each[0] if len(each) == 1 else np.concatenate(each, axis=2)
    palette = tiff_pages.palette(page)
    alpha = len(pages) == 1 and tiff_pages.alpha(page) > 0
    kind = pixels.dtype.name
    if pixels.dtype in (np.uint8, np.uint16):
        is_colour = pixels.shape[2] - alpha in (1, 3)
        kind = COLOURS[pixels.shape[2] - 1] if is_colour else f"{pixels.shape[2]} channels"
    return Picture(
        path,
        Header("TIFF", kind if palette is None else "P", page.bitspersample, pixels.shape[2]),
        pixels,
        palette,
        lossy=page.compression == tiff_pages.JPEG,
        white_is_zero=tiff_pages.photometric(page) == tiff_pages.WHITE_IS_ZERO,
        alpha=alpha,
    )


# Not with `Image.open`: its limit of pixels is global for the process, and not ours to change. `Limits` are checked
# instead.
def _open(path: Path, file: BinaryIO) -> Image.Image:
    """A picture, not yet decoded."""
    for opener in OPENERS:
        with suppress(SyntaxError, IndexError, TypeError, struct.error):  # it is of another format
            return opener(_rewound(file))
    found = f"found no image but a file that begins with {_rewound(file).read(16)!r}; {EXPECTED}"
    raise FileError(path, found, "save it as one or remove it")


def _is_lossy(format: str, path: Path) -> bool:
    if format == "WEBP":  # Pillow has closed its file; a lossless one has a chunk VP8L instead of VP8
        return b"VP8L" not in path.read_bytes()
    return format in ("JPEG", "MPO")


def _png_bits(file: BinaryIO) -> int:
    return _rewound(file).read(25)[24]  # after the signature and the first chunk's head: width, height, bits


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def encode_png(mask: np.ndarray) -> bytes:
    """A grey picture (H, W) uint8 or uint16, or colours (H, W, 3) uint8, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _read_deep_png(path: Path, file: BinaryIO) -> np.ndarray:
    try:
        import imagecodecs
    except ModuleNotFoundError:
        raise tiff_pages.missing(path, "colours of 16 bits, which imagecodecs reads") from None
    return imagecodecs.png_decode(_rewound(file).read())
