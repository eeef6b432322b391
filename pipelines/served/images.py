"""The images of a request, in any form that docs/serving.md lists, as (H, W, C) arrays."""

import base64
import binascii
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from unetpp.errors import FileError, UserError
from unetpp.images.decode import decode_image
from unetpp.images.pictures import Limits
from unetpp.images.pixels import convert

MAX_PIXELS = 100_000_000  # per request, over all images; a small file can declare more than fits into memory


@contextmanager
def named_image(number: int, count: int) -> Iterator[None]:
    try:
        yield
    except FileError as error:
        limit = f"what is left of this server's {MAX_PIXELS} px per request"
        reason = error.reason.replace("prepare.max_pixels", limit)
        fix = error.fix.replace("raise the limit", "send fewer images at once")
        raise UserError(f"image {number} of {count}: {reason}: {fix}") from None
    except UserError as error:
        raise UserError(f"image {number} of {count}: {error}") from None


def find_entries(data: Any, channels: int) -> tuple[list, bool]:
    """The images of a request for a network of `channels` channels, undecoded, and whether it was a single image."""
    if hasattr(data, "columns"):  # a pandas table
        if "image" not in data.columns and len(data.columns) != 1:
            raise UserError(f"found the columns {', '.join(map(str, data.columns))}; expected a column named image")
        return list(data["image"] if "image" in data.columns else data.iloc[:, 0]), False
    if isinstance(data, dict):
        return find_entries(_named(data), channels)
    if isinstance(data, bytes | bytearray | str):
        return [data], True
    if isinstance(data, np.ndarray) and data.dtype.kind in "OUS":
        return ([data.item()], True) if data.ndim == 0 else (list(data), False)
    if isinstance(data, np.ndarray):
        if data.ndim not in (2, 3, 4):
            raise UserError(
                f"found an array of shape {data.shape}; expected (H, W), (H, W, C), (N, H, W) or (N, H, W, C)"
            )
        return ([data], True) if _is_one(data, channels) else (list(data), False)
    if isinstance(data, list | tuple) and data and isinstance(data[0], int | float):
        raise UserError("found a list of numbers; expected an image of at least two dimensions")
    if isinstance(data, list | tuple):
        return list(data), False
    raise UserError(f"found {type(data).__name__}; expected arrays of pixels, or PNG, JPEG or TIFF files as base64")


def _named(entry: dict) -> Any:
    if set(entry) == {"image"} or set(entry) == {"b64"}:
        return next(iter(entry.values()))
    raise UserError(f"found the keys {', '.join(map(str, entry)) or '(none)'}; expected only the key image")


def _is_one(array: np.ndarray, channels: int) -> bool:
    """Whether an array is one image, (H, W) or (H, W, C), and not a stack; grey and RGB may have an alpha channel."""
    fitting = range(1, 5) if channels in (1, 3) else (channels,)
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] in fitting)


def read_image(entry: Any, channels: int, max_pixels: int) -> np.ndarray:
    """One image as (H, W, channels) uint8; uint16 or float32 if it was sent as a file of that type.

    Raises:
        UserError: not an image, other channels, or more than `max_pixels` pixels.
    """
    if isinstance(entry, dict):
        entry = _named(entry)
    if isinstance(entry, np.ndarray) and entry.ndim == 0:
        entry = entry.item()
    if isinstance(entry, str):
        try:
            entry = base64.b64decode("".join(entry.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"found text that is not base64 ({error}); expected a PNG, JPEG or TIFF file") from None
    if isinstance(entry, bytes | bytearray):
        return decode(bytes(entry), channels, max_pixels)
    try:
        array = np.asarray(entry)
    except ValueError:
        raise UserError("found rows of different lengths; expected pixels (H, W) or (H, W, C)") from None
    return _from_pixels(array.astype(array.dtype.newbyteorder("="), copy=False), channels, max_pixels)


def decode(content: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """Decode the bytes of a file, with the same decoder as the pipeline."""
    with tempfile.NamedTemporaryFile(prefix="unetpp-") as file:  # the decoders of TIFF and of 16 bits need a path
        file.write(content)
        file.flush()
        return decode_image(file.name, channels, limits=Limits(max_pixels=max_pixels))


def _from_pixels(array: np.ndarray, channels: int, max_pixels: int) -> np.ndarray:
    if not _is_one(array, channels) or 0 in array.shape:
        wanted = "(H, W) or (H, W, C) with C from 1 to 4" if channels in (1, 3) else f"(H, W, {channels})"
        raise UserError(f"found an array of shape {array.shape}; expected {wanted}")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise UserError(
            f"found {array.shape[0]} x {array.shape[1]} pixels; expected at most {max_pixels}, what is left of this "
            f"server's {MAX_PIXELS} px per request: send fewer images at once"
        )
    if array.dtype not in (np.uint8, np.uint16):
        # JSON has only one integer type, which numpy reads as int64.
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            found = array.dtype if array.dtype.kind not in "iu" else f"values from {array.min()} to {array.max()}"
            raise UserError(
                f"found {found}; expected whole numbers from 0 to 255 (uint8): send images of 16 bits or of floats as "
                "PNG or TIFF files"
            )
        array = array.astype(np.uint8)
    array = array[:, :, None] if array.ndim == 2 else array
    if channels in (1, 3):
        return convert(array[:, :, : 1 if array.shape[2] < 3 else 3], channels)  # drops alpha, as for files
    if array.shape[2] != channels:
        raise UserError(f"found an array of shape {array.shape}; expected (H, W, {channels})")
    return np.ascontiguousarray(array)


def as_png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, C) uint8, or (H, W) uint16, as a PNG file; the channels must be in the order BGR."""
    import cv2  # late: answers as arrays do not need it

    encoded, content = cv2.imencode(".png", pixels)
    assert encoded
    return content.tobytes()
