"""Windows of a TIFF page: only the strips or tiles of a window are decoded."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tifffile import TiffPage

# The georeference: pixel scale, tie points, transformation, and GeoTIFF's three key tags. GDAL's tags about the values
# of the bands (42112, 42113: their statistics, the nodata value) do not apply to a mask.
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
RESOLUTION = (282, 283, 296)  # pixels across, down, and their unit
Tag = tuple[int, int, int, Any, bool]  # in tifffile's format: code, type, count, value, once


def place_tags(page: "TiffPage") -> list[Tag]:
    """The tags for the position and size of a page's pixels, for another page with the same pixels."""
    found = (page.tags.get(code) for code in (*GEO_TAGS, *RESOLUTION))
    return [(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in found if tag]


class PageWindows:
    """Windows of a page, best read from top to bottom: segments that extend below one are kept for the next."""

    def __init__(self, page: "TiffPage"):
        self._page = page
        _, _, self.height, self.width, self._samples = page.shaped
        self._planes = page.shaped[0]
        self._segment = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        self._kept: dict[int, np.ndarray] = {}  # decoded segments (h, w, C) by their number
        # Uncompressed bytes, in rows: each row can be read separately, however long a strip is.
        self._is_plain = page.is_contiguous and page.predictor == page.fillorder == 1 and not page.is_subsampled

    @property
    def unpacked_px(self) -> int:
        """How many pixels are decoded at once, at least: a row, or a strip or tile."""
        tall, wide = self._segment
        segment = 1 if self._is_plain else wide * (tall if self._page.is_tiled else min(tall, self.height))
        return max(segment, self.width)

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The data in the window, in the format of `tiff_pages.decode`: (S, h, w, C)."""
        if self._is_plain:
            return np.stack(
                [self._read_plain(plane, top, height)[:, left : left + width] for plane in range(self._planes)]
            )
        found, kept = None, {}
        (tall, wide), bottom = self._segment, top + height
        down, across = math.ceil(self.height / tall), math.ceil(self.width / wide)
        for plane in range(self._planes):
            for row in range(top // tall, math.ceil(bottom / tall)):
                for column in range(left // wide, math.ceil((left + width) / wide)):
                    number = (plane * down + row) * across + column
                    segment = self._kept[number] if number in self._kept else self._decode(number)
                    if (row + 1) * tall > bottom:
                        kept[number] = segment
                    if found is None:
                        found = np.zeros((self._planes, height, width, self._samples), segment.dtype)
                    y, x = row * tall - top, column * wide - left  # of its first pixel, in the window
                    part = segment[max(0, -y) : height - y, max(0, -x) : width - x]
                    y, x = max(0, y), max(0, x)
                    found[plane, y : y + part.shape[0], x : x + part.shape[1]] = part
        self._kept = kept
        assert found is not None
        return found

    def _decode(self, number: int) -> np.ndarray:
        page, file = self._page, self._page.parent.filehandle
        file.seek(page.dataoffsets[number])
        data = file.read(page.databytecounts[number])
        segment = page.decode(data, number, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
        assert segment is not None
        return segment[0]

    def _read_plain(self, plane: int, top: int, height: int) -> np.ndarray:
        page, file = self._page, self._page.parent.filehandle
        assert page.dtype is not None
        row = self.width * self._samples
        file.seek(page.dataoffsets[0] + (plane * self.height + top) * row * page.dtype.itemsize)
        pixels = file.read_array(f"{page.parent.byteorder}{page.dtype.char}", height * row)
        return pixels.reshape(height, self.width, self._samples)
