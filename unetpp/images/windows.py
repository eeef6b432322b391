"""Images read by windows: for a TIFF only the strips or tiles needed, for other files from the decoded whole."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unetpp.errors import FileError
from unetpp.images import tiff_pages
from unetpp.images.decode import NO_LIMITS_SET, decode_image, to_array
from unetpp.images.limits import Limits, check_size
from unetpp.images.pictures import choose_pages, decoding, is_tiff, tiff_picture
from unetpp.images.tiff_windows import PageWindows, Tag, place_tags


@dataclass(frozen=True)
class WindowedImage:
    """An image of which parts can be read, best from top to bottom."""

    path: Path
    shape: tuple[int, int, int]  # (H, W, C)
    read: Callable[[int, int, int, int], np.ndarray]  # of top, left, height, width: (h, w, C) as `decode_image`
    tags: tuple[Tag, ...] = ()  # of a TIFF, its georeference


@contextmanager
def open_windows(path: str | Path, channels: int, limits: Limits = NO_LIMITS_SET) -> Iterator[WindowedImage]:
    """An image whose windows equal those of `decode_image`'s result; its errors are raised here or by reading a window.

    Args:
        channels: as of `decode_image`.
        limits: for what is decoded at once: a strip or tile of a TIFF, other files as a whole. A TIFF may be larger.

    Raises:
        FileError: as `decode_image`; also when reading a window.
    """
    path = Path(path)
    check_size(path, replace(limits, max_file_mib=sys.maxsize))
    if not is_tiff(path):
        image = decode_image(path, channels, limits=limits)
        yield WindowedImage(path, image.shape, lambda y, x, height, width: image[y : y + height, x : x + width])
        return
    with ExitStack() as stack:
        with decoding(path), tiff_pages.logged():
            tif = stack.enter_context(tiff_pages.opened(path))
            pages = choose_pages(path, tif, None, replace(limits, max_pixels=sys.maxsize))
            windows = [PageWindows(page) for page in pages]
            _check_parts(path, windows, limits)

        def read(top: int, left: int, height: int, width: int) -> np.ndarray:
            with decoding(path), tiff_pages.logged():
                planes = [one.read(top, left, height, width) for one in windows]
            return to_array(tiff_picture(path, pages, planes), channels)

        first = read(0, 0, 1, windows[0].width)  # refuses other numbers of channels now
        shape = (windows[0].height, windows[0].width, first.shape[2])
        yield WindowedImage(path, shape, read, tuple(place_tags(pages[0])))


def _check_parts(path: Path, windows: list[PageWindows], limits: Limits) -> None:
    most = max(one.unpacked_px for one in windows)
    if most > max(limits.max_pixels, 2**16):  # as in `check_known`
        raise FileError(
            path,
            f"found strips or tiles of {most} pixels, which are decompressed as a whole; expected at most "
            f"{limits.name} = {limits.max_pixels}",
            "save it as a TIFF in tiles, or raise the limit",
        )
