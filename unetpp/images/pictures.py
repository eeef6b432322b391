"""A picture file, opened with care: what it is, whether it may be decoded, and its pixels as stored.

Pillow decodes. It cuts colour of 16 bits a channel to 8 without a word, and knows neither float64 nor colour
of floats; those go through OpenCV.
"""

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from unetpp.errors import FileError
from unetpp.images import tiff

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
EXPECTED = "expected a whole PNG, TIFF, JPEG or BMP file"
ORIENTATION = 274  # the tag of EXIF
OPENERS = (PngImagePlugin.PngImageFile, JpegImagePlugin.jpeg_factory, BmpImagePlugin.BmpImageFile)
# What OpenCV keeps, of what Pillow does not know: whether that is 64 bits, colour, or a byte order.
DEEP = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"}


@dataclass(frozen=True)
class Limits:
    """What may be decoded at all; refused by the header, before it is. The values are for use without params."""

    max_pixels: int = 178_956_970  # where Pillow itself would stop: half a gigabyte of RGB
    max_file_mib: int = 2048


class Header(NamedTuple):
    """What a picture file says of itself."""

    format: str  # PNG, TIFF, JPEG, MPO, BMP
    mode: str  # in Pillow's words; of a kind that it does not know the type of a number, such as float64
    bits: int  # of a channel
    channels: int


@dataclass(frozen=True)
class Picture:
    """A decoded page."""

    path: Path
    header: Header
    sample: str  # "uint", "int" or "float"
    pixels: np.ndarray | Image.Image  # deep ones (H, W, C), the others as Pillow has them
    lossy: bool = False
    white_is_zero: bool = False  # a tag of TIFF


def count_pages(path: str | Path, limits: Limits) -> int:
    """How many pages a TIFF has; 1 for any other file.

    Raises:
        FileError: missing, empty, too large, or a broken TIFF.
    """
    path = Path(path)
    _check_size(path, limits)
    with path.open("rb") as file:
        if not tiff.is_tiff(file.read(4)):
            return 1
        try:
            return len(tiff.find_pages(file))
        except (ValueError, OverflowError, OSError, struct.error) as error:
            raise _broken(path, error) from None


def read_picture(path: Path, page: int | None, limits: Limits) -> Picture:
    """Decode a file, or one page of it (counted from 1), after all that its header can be refused for.

    Raises:
        FileError: missing, empty, broken, too large, rotated by a tag, or of several pages where `page` is None.
    """
    _check_size(path, limits)
    # The file is ours to close: Pillow keeps one open where decoding fails or pages follow.
    with path.open("rb") as file, warnings.catch_warnings():
        # Pillow warns of odd metadata. What it can decode all the same is taken, and what it cannot, raises.
        warnings.simplefilter("ignore")
        try:
            return (_read_tiff if tiff.is_tiff(file.read(4)) else _read_other)(path, file, page, limits)
        except Image.UnidentifiedImageError:
            start = _rewound(file).read(16)
            found = f"found no image but a file that begins with {start!r}; {EXPECTED}"
            raise FileError(path, found, "save it as one or remove it") from None
        except FileError:
            raise
        # A decoder raises nearly anything on a broken file: OSError, SyntaxError, ValueError, struct.error ...
        except Exception as error:
            raise _broken(path, error) from None


def _read_other(path: Path, file: BinaryIO, number: int | None, limits: Limits) -> Picture:
    image = _open(file)  # its header alone
    _check_pixels(path, *image.size, limits)
    _check_pages(path, getattr(image, "n_frames", 1) if image.format == "PNG" else 1, number, "")
    image.verify()  # the checksums of a PNG, which loading passes over
    image = _open(file)
    _check_upright(path, image.getexif().get(ORIENTATION, 1))
    image.load()
    image.info.pop("transparency", None)  # alpha is dropped, and Pillow warns where it cannot be kept
    bits = _png_bits(file) if image.format == "PNG" else 8
    deep = bits == 16 and image.mode in ("RGB", "RGBA", "LA")
    pixels = _read_deep(path, 0, "uint16") if deep else image
    header = Header(str(image.format), image.mode, bits, len(image.getbands()))
    return Picture(path, header, "uint", pixels, lossy=header.format in ("JPEG", "MPO"))


def _read_tiff(path: Path, file: BinaryIO, number: int | None, limits: Limits) -> Picture:
    pages = tiff.find_pages(file)
    _check_pages(path, len(pages), number, ", or set prepare.pages to slices")
    index = (number or 1) - 1
    page = tiff.read_page(file, pages, index)
    _check_pixels(path, page.width, page.height, limits)
    _check_upright(path, page.orientation)
    if page.missing:
        raise ValueError(f"{page.missing} strips or tiles are missing")
    kind = f"{page.sample}{page.bits}"
    facts = {"lossy": page.lossy, "white_is_zero": page.photometric == 0}
    with tiff.FromPage(path, pages, index) as from_page:
        image = _open_tiff(from_page)
        deep = image is None or (page.bits == 16 and image.mode in ("RGB", "RGBA", "LA"))
        if image is not None and not deep:
            _check_upright(path, image.getexif().get(ORIENTATION, 1))  # XMP may tell one, too
            if image.size != (page.width, page.height):  # or the check of the pixels was of others
                raise ValueError(f"its headers declare {image.size} and {page.width}x{page.height} px")
            with _guard_lifted(image):
                image.load()
    header = Header("TIFF", kind if image is None else image.mode, page.bits, page.channels)
    if image is not None and not deep:
        return Picture(path, header, page.sample, image, **facts)
    if page.photometric > 2 or page.channels > 4 or kind not in DEEP:
        raise FileError(
            path,
            f"found a TIFF of {page.channels} channels of {page.bits} bits ({page.sample}, photometric "
            f"{page.photometric}), which is not read; expected grey or RGB of 8, 16 or 32 bits, or floats",
            "save it as one of these",
        )
    pixels = _read_deep(path, index, kind)
    if pixels.shape[:2] != (page.height, page.width):
        raise ValueError(f"decoded to {pixels.shape}")
    return Picture(path, header, page.sample, pixels, **facts)


# Not by `Image.open`: its guard against too many pixels is one number for the whole process, which is not ours to
# change. `Limits` are checked in its place.
def _open(file: BinaryIO, openers: tuple[Callable, ...] = OPENERS) -> Image.Image:
    """A picture, not yet decoded."""
    for opener in openers:
        with suppress(SyntaxError, IndexError, TypeError, struct.error):  # it is of another format
            return opener(_rewound(file))
    raise Image.UnidentifiedImageError


def _open_tiff(file: tiff.FromPage) -> Image.Image | None:
    """A page of a TIFF, not yet decoded; None for a kind of pixels that Pillow does not know."""
    with suppress(Image.UnidentifiedImageError):
        return _open(file, (TiffImagePlugin.TiffImageFile,))


@contextmanager
def _guard_lifted(image: Image.Image) -> Iterator[None]:
    """Of a TIFF, Pillow's guard looks once more while it loads: a large one, within `Limits`, loads without it."""
    most = Image.MAX_IMAGE_PIXELS
    if most is None or image.width * image.height <= most:
        yield
        return
    with _lifting:
        most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = most


_lifting = Lock()


def _png_bits(file: BinaryIO) -> int:
    return _rewound(file).read(25)[24]  # after the signature and the first chunk's head: width, height, bits


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _broken(path: Path, error: Exception) -> FileError:
    what = " ".join(str(error).split())[:200] or type(error).__name__
    return FileError(path, f"found a broken file ({what}); {EXPECTED}", "fetch it again or remove it")


def _check_size(path: Path, limits: Limits) -> None:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise FileError(path, f"found {found}; {EXPECTED}", "correct the name")
    size = path.stat().st_size
    if size == 0:
        raise FileError(path, f"found an empty file (0 bytes); {EXPECTED}", "fetch it again or remove it")
    if size > limits.max_file_mib * 2**20:
        raise FileError(
            path,
            f"found {size / 2**20:.0f} MiB; expected at most prepare.max_file_mib = {limits.max_file_mib}",
            "cut it up, or raise the limit",
        )


def _check_pixels(path: Path, width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise _broken(path, ValueError(f"it declares {width}x{height} px"))
    if width * height > limits.max_pixels:
        raise FileError(
            path,
            f"found too many pixels ({width}x{height} px); expected at most prepare.max_pixels = {limits.max_pixels}",
            "cut it into tiles, or raise the limit",
        )


def _check_upright(path: Path, orientation: int) -> None:
    if orientation not in (0, 1):  # 0 is written by tools that mean "not said"
        raise FileError(
            path,
            f"found the orientation tag {orientation}, so viewers turn it and an image and its mask may disagree; "
            "expected upright pixels",
            "turn the pixels themselves and remove the tag, of image and mask alike",
        )


def _check_pages(path: Path, pages: int, number: int | None, hint: str) -> None:
    if number is None and pages > 1:
        raise FileError(path, f"found {pages} pages; expected one", f"save each page as a file of its own{hint}")
    if number is not None and not 1 <= number <= pages:
        raise FileError(
            path, f"found {pages} pages; expected page {number} among them", "save the volume as TIFF again"
        )


def encode_png(mask: np.ndarray) -> bytes:
    """A mask or a grey picture (H, W) uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _read_deep(path: Path, page: int, kind: str) -> np.ndarray:
    """Pixels that Pillow does not keep, as (H, W, C) with C of 1 (grey), 2 (and alpha), 3 (RGB) or 4 (and alpha)."""
    try:
        import cv2
    except ModuleNotFoundError:  # only such files need it
        raise FileError(
            path, f"found {kind} pixels, which OpenCV reads; expected it to be there", "pip install 'unetpp[pipelines]'"
        ) from None
    if page:
        found, pictures = cv2.imreadmulti(str(path), start=page, count=1, flags=cv2.IMREAD_UNCHANGED)
        pixels = pictures[0] if found else None
    else:
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype.name != kind:
        raise FileError(
            path,
            f"found {kind} pixels that cannot be read; expected a whole PNG or TIFF",
            "save it again, without compression",
        )
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(pixels.shape[2])  # OpenCV's is BGR
    return pixels if order is None else np.ascontiguousarray(pixels[:, :, order])
