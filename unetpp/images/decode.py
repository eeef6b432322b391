"""Image and mask files to arrays by one policy, and the refusal of files that would be read wrongly.

The policy as a table stands in docs/data.md, "How files are read".
"""

from pathlib import Path

import numpy as np

from unetpp.errors import FileError
from unetpp.images.pictures import Limits, Picture, read_picture
from unetpp.images.pixels import as_float32, convert

NO_LIMITS_SET = Limits()


def decode_image(
    path: str | Path, channels: int, page: int | None = None, limits: Limits = NO_LIMITS_SET
) -> np.ndarray:
    """Read an image as (H, W, C) uint8, uint16 where the file holds more than 8 bits a channel, or float32.

    Floats, signed whole numbers and those of 32 bits become float32, with their values. Alpha is dropped, a
    palette is replaced by its colours, 1-bit becomes 0 and 255.

    Args:
        channels: 1 for grey, 3 for RGB; images of the other kind are converted.
        page: of a TIFF, counted from 1; None for a file that must have one.

    Raises:
        FileError: missing, broken, empty, too large, rotated by a tag, of several pages, not finite, or of a
            type that is none of these.
    """
    return to_array(read_picture(Path(path), page, limits), channels)


def to_array(picture: Picture, channels: int) -> np.ndarray:
    """A picture as `decode_image` gives it; raises what that does of colours, of values and of 0 as white."""
    pixels, mode, bits = picture.pixels, picture.header.mode, picture.header.bits
    if picture.white_is_zero and bits > 8:
        raise FileError(
            picture.path,
            f"found {bits}-bit pixels of which 0 is white; expected 0 to be black",
            "invert the values and save it again",
        )
    if isinstance(pixels, np.ndarray):
        return convert(_kept(picture, pixels[:, :, : 1 if pixels.shape[2] < 3 else 3]), channels)
    if mode.startswith("I") or mode == "F" or picture.sample != "uint":
        return convert(_kept(picture, _numbers(picture))[:, :, None], channels)
    if mode in ("1", "L", "LA"):
        return convert(np.asarray(pixels.convert("L"))[:, :, None], channels)
    if mode in ("RGB", "RGBA", "P", "PA", "YCbCr"):
        return convert(np.asarray(pixels.convert("RGB")), channels)
    raise FileError(
        picture.path, f"found colours of type {mode}; expected grey, RGB or RGBA", "convert the image to RGB"
    )


def decode_mask(path: str | Path, page: int | None = None, limits: Limits = NO_LIMITS_SET) -> np.ndarray:
    """Read a mask as (H, W) integers: the values as stored, for a palette the index and not the colour.

    Raises:
        FileError: as `decode_image`, and for JPEG, floating-point, negative or coloured masks.
    """
    picture = read_picture(Path(path), page, limits)
    path, pixels, header = picture.path, picture.pixels, picture.header
    mode = header.mode
    if picture.lossy:
        kind = "JPEG-compressed TIFF" if header.format == "TIFF" else header.format
        raise FileError(
            path,
            f"found a {kind} mask, whose values compression has changed; expected PNG, TIFF or BMP",
            "export the mask again as PNG",
        )
    if picture.white_is_zero:
        raise FileError(
            path,
            "found a mask of which a tag says that 0 is white, so that foreground may be either; expected 0 for "
            "background and no such tag",
            "save it again as PNG (in ImageJ after Image > Lookup Tables > Invert LUT)",
        )
    if isinstance(pixels, np.ndarray):
        if pixels.dtype.kind in "ui":
            return _labels(path, _single_channel(path, pixels))
    elif mode.startswith("I") or (mode == "L" and picture.sample == "int"):
        return _labels(path, _numbers(picture))
    elif mode == "1":
        return np.asarray(pixels).astype(np.uint8)
    elif mode in ("L", "P"):
        mask = np.asarray(pixels)
        # Pillow stretches grey of 2 and 4 bits to 0 ... 255; the class indices are what was stored.
        stretched = mode == "L" and header.bits in (2, 4)
        return mask // (255 // (2**header.bits - 1)) if stretched else mask
    elif mode in ("RGB", "RGBA", "LA"):
        return _single_channel(path, np.asarray(pixels))
    kind = "floating-point values" if picture.sample == "float" else f"type {mode}"
    raise FileError(
        path,
        f"found a mask of {kind}; expected whole numbers",
        "save it as an 8-bit or 16-bit grey PNG with 0 for background",
    )


def _labels(path: Path, mask: np.ndarray) -> np.ndarray:
    """Whole numbers, none below zero: unsigned ones of 8 and 16 bits as they are, others in a signed type."""
    if mask.min() < 0:
        raise FileError(
            path,
            f"found the mask value {mask.min()}; expected 0 for background and more",
            "save it as an 8-bit or 16-bit grey PNG with 0 for background",
        )
    if mask.dtype in (np.uint8, np.uint16):
        return mask
    return mask.astype(np.int32 if mask.max() < 2**31 else np.int64)


def _single_channel(path: Path, mask: np.ndarray) -> np.ndarray:
    """(H, W, 1 to 4) of a grey picture kept as colour to its (H, W) values."""
    num_colours = 3 if mask.shape[2] > 2 else 1
    colours, alpha = mask[:, :, :num_colours], mask[:, :, num_colours:]
    if alpha.size and alpha.min() != alpha.max():
        raise FileError(
            path,
            "found a mask with transparent parts, so it may lie in the colour or in the transparency; "
            "expected one channel",
            "save it as an 8-bit or 16-bit grey PNG",
        )
    if (colours != colours[:, :, :1]).any():
        raise FileError(
            path,
            "found a mask in colours; expected a grey value or a palette index for each class or object",
            "map each colour to a number and save an 8-bit or 16-bit grey PNG",
        )
    return np.ascontiguousarray(colours[:, :, 0])


def _numbers(picture: Picture) -> np.ndarray:
    """(H, W) of a grey picture in the type that the file has, which Pillow's mode does not tell."""
    pixels = np.asarray(picture.pixels)
    if picture.sample == "int":
        return pixels.view(np.int8) if pixels.dtype == np.uint8 else pixels
    if picture.sample == "uint":
        return pixels.astype(np.uint16) if picture.header.bits <= 16 else pixels.view(np.uint32)
    return pixels


def _kept(picture: Picture, pixels: np.ndarray) -> np.ndarray:
    """uint8 and uint16 as they are, all others as float32."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    try:
        kept = as_float32(pixels)
    except ValueError as error:
        raise FileError(
            picture.path, str(error), "replace them by a value that the image has, and save it again"
        ) from None
    if not np.array_equal(kept, pixels):
        _tell_rounding(picture.path, pixels.dtype.name)
    return kept


def _tell_rounding(path: Path, kind: str) -> None:
    # Once for each folder and type: a line for every file would hide all others.
    if (path.parent, kind) not in _told:
        _told.add((path.parent, kind))
        print(f"note: {path}: {kind} pixels are rounded to float32, and so are others of this folder")


_told: set[tuple[Path, str]] = set()
