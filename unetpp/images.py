"""Image and mask files to arrays, and the refusal of files that would be read wrongly.

Pillow decodes. It cuts colour of 16 bits a channel to 8 without a word, so those files go through OpenCV.
"""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from unetpp.errors import UserError

FORMATS = ("PNG", "TIFF", "JPEG", "BMP")
SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
# ITU-R BT.601, the weights of Pillow and OpenCV.
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])
ORIENTATION = 274  # the tag of EXIF and TIFF
BITS_PER_SAMPLE = 258  # the tag of TIFF


def decode_image(path: str | Path, channels: int) -> np.ndarray:
    """Read an image as (H, W, C) uint8, or uint16 where the file holds 16 bits a channel.

    Alpha is dropped, a palette is replaced by its colours, 1-bit becomes 0 and 255.

    Args:
        channels: 1 for grey, 3 for RGB; images of the other kind are converted.

    Raises:
        UserError: missing, broken, empty, rotated by a tag, of several pages, or of a type that is neither.
    """
    path = Path(path)
    image, bits = _read(path)
    if image.mode == "F" or (bits > 16 and image.mode.startswith("I")):
        raise UserError(
            f"{path}: found {'floating-point' if image.mode == 'F' else f'{bits}-bit'} pixels, whose range "
            "nothing tells; expected 8 or 16 bits a channel: scale the image and save it as 16-bit"
        )
    if image.mode in ("RGB", "RGBA", "LA") and bits == 16:
        return convert(_read_deep(path), channels)
    if image.mode.startswith("I"):  # I;16 and its byte orders, or I for the signed type of TIFF
        pixels = np.asarray(image)
        if pixels.min() < 0:
            raise UserError(f"{path}: found pixels below zero; expected 0 to 65535: save the image as unsigned 16-bit")
        return convert(pixels.astype(np.uint16)[:, :, None], channels)
    if image.mode in ("1", "L", "LA"):
        return convert(np.asarray(image.convert("L"))[:, :, None], channels)
    if image.mode in ("RGB", "RGBA", "P", "PA", "YCbCr"):
        return convert(np.asarray(image.convert("RGB")), channels)
    raise UserError(f"{path}: found colours of type {image.mode}; expected grey, RGB or RGBA: convert the image to RGB")


def convert(image: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, 1 or 3) to (H, W, channels) of the same type: grey is repeated, RGB is weighted."""
    if image.shape[2] == channels:
        return np.ascontiguousarray(image)
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.rint(image @ GREY_WEIGHTS).astype(image.dtype)[:, :, None]  # (H, W, 1)


def decode_mask(path: str | Path) -> np.ndarray:
    """Read a mask as (H, W) integers: the values as stored, for a palette the index and not the colour.

    Raises:
        UserError: as `decode_image`, and for JPEG, floating-point, negative or coloured masks.
    """
    path = Path(path)
    image, bits = _read(path)
    if image.format not in ("PNG", "TIFF", "BMP"):
        raise UserError(
            f"{path}: found a {image.format} mask, whose values compression has changed; "
            "expected PNG, TIFF or BMP: export the mask again as PNG"
        )
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("L", "P"):
        mask = np.asarray(image)
        # Pillow stretches grey of 2 and 4 bits to 0 ... 255; the class indices are what was stored.
        stretched = image.format == "PNG" and image.mode == "L" and bits in (2, 4)
        return mask // (255 // (2**bits - 1)) if stretched else mask
    if image.mode.startswith("I"):
        mask = np.asarray(image)
        if mask.min() < 0:
            raise UserError(f"{path}: found the mask value {mask.min()}; expected 0 for background and more")
        return mask.astype(np.uint16 if bits <= 16 else np.int32)
    if image.mode in ("RGB", "RGBA", "LA"):
        return _single_channel(path, _read_deep(path, alpha=True) if bits == 16 else np.asarray(image))
    raise UserError(
        f"{path}: found a mask of type {image.mode}; expected whole numbers: "
        "save it as an 8-bit or 16-bit grey PNG with 0 for background"
    )


def _single_channel(path: Path, mask: np.ndarray) -> np.ndarray:
    """(H, W, 2, 3 or 4) of a grey picture kept as colour to its (H, W) values."""
    colours, alpha = (mask[:, :, :3], mask[:, :, 3:]) if mask.shape[2] > 2 else (mask[:, :, :1], mask[:, :, 1:])
    if alpha.size and alpha.min() != alpha.max():
        raise UserError(
            f"{path}: found a mask with transparent parts, so it may lie in the colour or in the "
            "transparency; expected one channel: save it as an 8-bit or 16-bit grey PNG"
        )
    if (colours != colours[:, :, :1]).any():
        raise UserError(
            f"{path}: found a mask in colours; expected a grey value or a palette index for each class or "
            "object: map each colour to a number and save an 8-bit or 16-bit grey PNG"
        )
    return np.ascontiguousarray(colours[:, :, 0])


def _read(path: Path) -> tuple[Image.Image, int]:
    """A wholly decoded picture and its stored bits a channel."""
    expected = "expected a whole PNG, TIFF, JPEG or BMP file"
    if not path.is_file():
        raise UserError(f"{path}: found {'a folder' if path.is_dir() else 'no such file'}; {expected}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: found an empty file (0 bytes); {expected}: fetch it again or remove it")
    try:
        # The file is ours to close: Pillow keeps one open where decoding fails or pages follow.
        with path.open("rb") as file:
            Image.open(file, formats=FORMATS).verify()  # the checksums of a PNG, which loading passes over
            file.seek(0)
            image = Image.open(file, formats=FORMATS)
            orientation = image.getexif().get(ORIENTATION, 1)
            pages = getattr(image, "n_frames", 1) if image.format in ("PNG", "TIFF") else 1
            bits = _stored_bits(path, image)
            image.load()
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path}: found too many pixels ({error}); expected an image that fits in memory: cut it up"
        ) from None
    except Image.UnidentifiedImageError:
        with path.open("rb") as file:
            start = file.read(16)
        raise UserError(
            f"{path}: found no image but a file that begins with {start!r}; {expected}: save it as one or remove it"
        ) from None
    # A decoder raises nearly anything on a broken file: OSError, SyntaxError, ValueError, struct.error ...
    except Exception as error:
        raise UserError(f"{path}: found a broken file ({error}); {expected}: fetch it again or remove it") from None
    if orientation not in (0, 1):  # 0 is written by tools that mean "not said"
        raise UserError(
            f"{path}: found the orientation tag {orientation}, so viewers turn it and an image and its "
            "mask may disagree; expected upright pixels: turn the pixels themselves and remove the tag"
        )
    if pages > 1:
        raise UserError(f"{path}: found {pages} pages; expected one: save each page as a file of its own")
    return image, bits


def _stored_bits(path: Path, image: Image.Image) -> int:
    """Bits a channel in the file, which Pillow's mode does not tell for colour."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return struct.unpack_from("B", file.read(25), 24)[0]  # IHDR: width, height, bit depth
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))  # pyright: ignore[reportAttributeAccessIssue]
    return 8


def _read_deep(path: Path, alpha: bool = False) -> np.ndarray:
    """Colour, or grey with alpha, of 16 bits: (H, W, 1 or 3), with the alpha last where asked for."""
    # Only such files need OpenCV, and `unetpp` imports on a machine without it.
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise UserError(f"{path}: found 16-bit colour that cannot be read; expected PNG: save it as 16-bit RGB PNG")
    if pixels.shape[2] == 2:  # grey and alpha
        return pixels if alpha else pixels[:, :, :1]
    order = [2, 1, 0, 3] if alpha and pixels.shape[2] == 4 else [2, 1, 0]  # OpenCV's is BGR
    return np.ascontiguousarray(pixels[:, :, order])


class Header(NamedTuple):
    """What a picture file says of itself: format and mode in Pillow's words, stored bits and channels."""

    format: str
    mode: str
    bits: int
    channels: int


def read_header(path: str | Path) -> Header:
    """The header of a file that `decode_image` has read; the pixels are not decoded again."""
    path = Path(path)
    with Image.open(path, formats=FORMATS) as image:
        return Header(image.format or "", image.mode, _stored_bits(path, image), len(image.getbands()))
