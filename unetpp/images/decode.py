"""Reads image and mask files as arrays by one policy, and refuses files that would be misread.

The table of the policy is in docs/reading.md.
"""

from pathlib import Path

import numpy as np

from unetpp.errors import FileError
from unetpp.images.pictures import Limits, Picture, read_picture
from unetpp.images.pixels import as_float32, convert

NO_LIMITS_SET = Limits()
DARK = 32  # of 255: darker colours are black, and smaller differences are grey


def decode_image(
    path: str | Path, channels: int, page: int | None = None, limits: Limits = NO_LIMITS_SET
) -> np.ndarray:
    """Read an image as (H, W, C) uint8, uint16 if the file has more than 8 bits per channel, or float32.

    Floats, signed integers and 32-bit integers become float32, with their values. Alpha is dropped, a palette is
    replaced by its colours, 1-bit becomes 0 and 255.

    Args:
        channels: 1 for grey, 3 for RGB, which are converted to each other; 2 to 16 others, as in the file.
        page: of a TIFF, counted from 1; None for a file that must have one page.

    Raises:
        FileError: missing, broken, empty, too large, rotated by a tag, with several pages, non-finite values, another
            number of channels, or another type.
    """
    return to_array(read_picture(Path(path), page, limits), channels)


def to_array(picture: Picture, channels: int) -> np.ndarray:
    """A picture as `decode_image` returns it; raises the same errors about values and 0 as white."""
    pixels, bits = picture.pixels[:, :, : picture.num_channels], picture.header.bits
    num = 3 if picture.palette is not None else picture.num_channels
    if num != channels and {num, channels} != {1, 3}:
        raise _other_channels(picture, num, channels)
    if picture.white_is_zero and bits > 8:
        raise FileError(
            picture.path,
            f"found {bits}-bit pixels with 0 as white; expected 0 to be black",
            "invert the values and save it again",
        )
    if picture.palette is not None:
        pixels = picture.palette[pixels[:, :, 0]]
    elif bits < 8:
        pixels = np.rint(pixels * (255 / (2**bits - 1))).astype(np.uint8)
    if picture.white_is_zero:
        pixels = 255 - pixels
    return convert(_kept(picture.path, pixels), channels)


def _other_channels(picture: Picture, num: int, channels: int) -> FileError:
    return FileError(
        picture.path,
        f"found {num} channel{'s' * (num > 1)}{' and alpha, which does not count' * picture.alpha}; expected {channels}"
        f"{', or 1 and 3, which are converted to each other' * (channels in (1, 3))}",
        f"set prepare.channels to {num} and train on such images, or give images of {channels}"
        + " (a TIFF whose last sample is not called alpha)" * (picture.alpha and channels == num + 1),
    )


def decode_mask(
    path: str | Path, page: int | None = None, limits: Limits = NO_LIMITS_SET, lossy: bool = False, named: bool = False
) -> np.ndarray:
    """Read a mask as (H, W) integers: the values as stored, for a palette the index, not the colour.

    Args:
        lossy: also read JPEG, whose values are only near those that were stored.
        named: the caller knows what each value means, so index 0 of a palette may have any colour.

    Raises:
        FileError: as `decode_image`, and for JPEG, floating-point, negative or coloured masks.
    """
    return mask_values(read_picture(Path(path), page, limits), lossy, named)


def mask_values(picture: Picture, lossy: bool = False, named: bool = False) -> np.ndarray:
    """A picture as `decode_mask` returns it."""
    path, pixels = picture.path, picture.pixels
    if picture.lossy and not lossy:
        kind = "JPEG-compressed TIFF" if picture.header.format == "TIFF" else picture.header.format
        raise FileError(
            path,
            f"found a {kind} mask, whose values were changed by compression; expected PNG, TIFF or BMP",
            "export the mask again as PNG, set prepare.mask_threshold to 128 if bright is foreground, or name the "
            "values in prepare.values",
        )
    if picture.lossy and pixels.shape[2] == 3 and np.ptp(pixels, axis=2).max() < DARK:
        pixels = convert(pixels, 1)  # grey except for compression artefacts
    if picture.white_is_zero:
        raise FileError(
            path,
            "found a mask with a tag that says that 0 is white, so that foreground may be either; expected 0 for "
            "background and no such tag",
            "save it again as PNG (in ImageJ after Image > Lookup Tables > Invert LUT)",
        )
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all() or (pixels != np.floor(pixels)).any() or float(pixels.max()) >= 2**53:
            raise FileError(
                path,
                "found a mask of floating-point values that are no whole numbers; expected whole numbers",
                "save it as an 8-bit or 16-bit grey PNG with 0 for background",
            )
        pixels = pixels.astype(np.int64)
    if picture.palette is not None and not named:
        _check_background(path, pixels, picture.palette)
    return _labels(path, _single_channel(path, pixels, picture.num_channels))


def mask_colours(picture: Picture) -> np.ndarray:
    """The colours (H, W) int32 of a mask as in a viewer: 0xRRGGBB of RGB, a palette, or grey.

    Raises:
        FileError: other than 8-bit colours, or a colour that is transparent in one place and not in another.
    """
    path, pixels = picture.path, picture.pixels
    colours = to_array(picture, 3)
    if colours.dtype != np.uint8:
        raise FileError(
            path,
            f"found a mask of {picture.header.bits}-bit values; expected 8-bit colours, as prepare.values has",
            "save it as an 8-bit RGB or palette PNG, or name values instead of colours",
        )
    packed = colours.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    if picture.palette is None and pixels.shape[2] in (2, 4):
        both = packed.astype(np.int64) * 256 + pixels[:, :, -1]
        if pixels[:, :, -1].min() < 255 and len(np.unique(packed)) < len(np.unique(both)):
            raise FileError(
                path,
                "found a mask with a colour that is transparent in one place and not in another; expected a colour for "
                "each meaning",
                "save it as an RGB or palette PNG",
            )
    return packed


def _check_background(path: Path, indices: np.ndarray, palette: np.ndarray) -> None:
    """Refuse a palette in which index 0 may not be the background: tools that reduce colours number them arbitrarily.

    No grey may be darker than index 0. No other colour may be black, or white if index 0 is not black.
    """
    zero, others = palette[0].astype(int), palette[np.unique(indices[indices > 0])].astype(int)
    brightness = others.max(axis=1)
    doubtful = brightness < zero.max()
    if np.ptp(np.vstack([zero, others]), axis=1).max() >= DARK:
        doubtful &= brightness < DARK
        doubtful |= (others.min(axis=1) > 255 - DARK) & (zero.max() >= DARK)
    if doubtful.any():
        raise FileError(
            path,
            f"found a palette mask whose index 0 is the colour {tuple(zero.tolist())}, and black or white is another "
            "index, so that foreground may be either; expected index 0 to be the background, and black",
            "save it as an 8-bit or 16-bit grey PNG with 0 for background",
        )


def _labels(path: Path, mask: np.ndarray) -> np.ndarray:
    """Non-negative integers: unsigned 8- and 16-bit ones as they are, others in a signed type."""
    if mask.min() < 0 or mask.max() >= 2**63:
        raise FileError(
            path,
            f"found the mask value {mask.min() if mask.min() < 0 else mask.max()}; expected 0 for background and more",
            "save it as an 8-bit or 16-bit grey PNG with 0 for background",
        )
    if mask.dtype in (np.uint8, np.uint16):
        return mask
    return mask.astype(np.int32 if mask.max() < 2**31 else np.int64)


def _single_channel(path: Path, mask: np.ndarray, num_colours: int) -> np.ndarray:
    """(H, W, C) of a grey picture stored in colour, possibly with alpha last, to its (H, W) values."""
    if num_colours not in (1, 3):
        raise FileError(
            path,
            f"found a mask of {num_colours} channels; expected one",
            "save it as an 8-bit or 16-bit grey PNG, or each channel as the mask of a class in masks/<class>/",
        )
    colours, alpha = mask[:, :, :num_colours], mask[:, :, num_colours:]
    if alpha.size and alpha.min() != alpha.max():
        raise FileError(
            path,
            "found a mask with transparent parts, so it may be in the colour or in the transparency; "
            "expected one channel",
            "save it as an 8-bit or 16-bit grey PNG",
        )
    if (colours != colours[:, :, :1]).any():
        raise FileError(
            path,
            "found a mask in colours; expected a grey value or a palette index for each class or object",
            "name the colours in prepare.values, such as {'#000000': background, '#ff0000': NAME}, or save an 8-bit or "
            "16-bit grey PNG of class indices",
        )
    return np.ascontiguousarray(colours[:, :, 0])


def _kept(path: Path, pixels: np.ndarray) -> np.ndarray:
    """uint8 and uint16 as they are, all others as float32."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    try:
        kept = as_float32(pixels)
    except ValueError as error:
        raise FileError(path, str(error), "replace them by a value that the image has, and save it again") from None
    if not np.array_equal(kept, pixels):
        _tell_rounding(path, pixels.dtype.name)
    return kept


def _tell_rounding(path: Path, kind: str) -> None:
    # Once per folder and type: a line for every file would hide all others.
    if (path.parent, kind) not in _told:
        _told.add((path.parent, kind))
        print(f"note: {path}: {kind} pixels are rounded to float32, as are others in this folder")


_told: set[tuple[Path, str]] = set()
