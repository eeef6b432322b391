"""Laws of windows: they hold what the whole image holds, and are refused for the same reasons."""

from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.unetpp.images.test_tiff_pages import READ, REFUSED, SWEEP, written
from unetpp.errors import FileError
from unetpp.images.decode import decode_image
from unetpp.images.pictures import Limits
from unetpp.images.windows import open_windows

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (150, 133, 3)).astype(np.uint8)
GREYS = RNG.integers(0, 65536, (150, 133)).astype(np.uint16)
FILES: dict[str, dict[str, Any]] = {
    "plain": {"data": COLOURS},
    "plain, planes": {"data": np.moveaxis(COLOURS, 2, 0), "photometric": "rgb", "planarconfig": "separate"},
    "plain, other order": {"data": GREYS, "byteorder": ">", "bigtiff": True},
    "strips": {"data": COLOURS, "rowsperstrip": 7, "compression": "lzw", "predictor": True},
    "one strip": {"data": GREYS, "rowsperstrip": 150, "compression": "zlib"},
    "tiles": {"data": COLOURS, "tile": (32, 48), "compression": "zlib"},
    "tiles that are not packed": {"data": GREYS, "tile": (16, 16)},
    "tiles of planes": {"data": np.moveaxis(COLOURS, 2, 0), "photometric": "rgb", "tile": (32, 16),
                        "compression": "zstd"},
    "floats": {"data": GREYS.astype(np.float32) / 7, "tile": (64, 32), "compression": "zlib", "predictor": 3},
    "5 channels": {"data": RNG.integers(0, 256, (5, 150, 133)).astype(np.uint8), "photometric": "minisblack",
                   "planarconfig": "separate", "rowsperstrip": 11, "compression": "lzma"},
    "pages as channels": {"data": RNG.integers(0, 256, (2, 150, 133)).astype(np.uint8), "photometric": "minisblack",
                          "metadata": {"axes": "CYX"}, "tile": (32, 32)},
    "JPEG": {"data": COLOURS, "tile": (32, 48), "compression": "jpeg"},
    "1 bit": {"data": GREYS > 2**15, "photometric": "minisblack", "rowsperstrip": 9, "compression": "packbits"},
}  # fmt: skip
CHANNELS = {"5 channels": 5, "pages as channels": 2}


def check_windows(path, channels):
    whole = decode_image(path, channels)
    height, width = whole.shape[:2]
    with open_windows(path, channels) as image:
        assert image.shape == whole.shape
        for top in range(0, height, 40):  # as prediction reads: rows that overlap
            rows = min(57, height - top)
            assert np.array_equal(image.read(top, 0, rows, width), whole[top : top + rows])
        y, x = height // 3, width // 4
        part = image.read(y, x, height // 2, width // 3)
        assert part.dtype == whole.dtype
        assert np.array_equal(part, whole[y : y + height // 2, x : x + width // 3])


@pytest.mark.parametrize("name", FILES)
def test_windows_hold_what_the_whole_holds(tmp_path, name):
    path = written(tmp_path / "a.tif", **FILES[name])
    for channels in [CHANNELS[name]] if name in CHANNELS else [1, 3]:
        check_windows(path, channels)


@pytest.mark.parametrize("options", [options for options, _ in READ.values()], ids=READ)
def test_windows_of_every_kind_that_is_read_hold_its_values(tmp_path, options):
    check_windows(written(tmp_path / "a.png", **options), 3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp"])
def test_other_files_are_decoded_as_a_whole_within_the_limit(tmp_path, name):
    Image.fromarray(COLOURS).save(tmp_path / name)
    check_windows(tmp_path / name, 3)
    limits = Limits(max_pixels=1000, name="--max-pixels")
    with pytest.raises(FileError, match=r"found too many pixels .* expected at most --max-pixels = 1000"):
        open_windows(tmp_path / name, 3, limits).__enter__()


def test_of_a_tiff_the_limit_is_for_what_is_unpacked_at_once(tmp_path):
    limits = Limits(max_pixels=2**16)
    greys = np.tile(GREYS, (4, 1))
    for options in ({}, {"tile": (16, 16), "compression": "zlib"}):
        with open_windows(written(tmp_path / "a.tif", greys, **options), 1, limits) as image:
            assert np.array_equal(image.read(590, 100, 10, 33)[..., 0], greys[590:, 100:])
    written(tmp_path / "a.tif", greys, rowsperstrip=600, compression="zlib")
    with pytest.raises(FileError, match=r"strips or tiles of 79800 pixels.*save it as a TIFF in tiles"):
        open_windows(tmp_path / "a.tif", 1, limits).__enter__()


def read_all(path, channels=3):
    with open_windows(path, channels) as image:
        return image.read(0, 0, *image.shape[:2])


ONE_OF_EACH = ("a volume in one page", "CMYK", "several series", "a JPEG that is cut", "huge tiles", "cut, lzw")


@pytest.mark.parametrize(
    "name", [name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.nightly) for name in REFUSED]
)
def test_what_is_refused_as_a_whole_is_refused_by_windows(tmp_path, name):
    write, message = REFUSED[name]
    write(tmp_path / "a.tif")
    with pytest.raises(FileError, match=rf"a\.tif: ({message}|found strips or tiles of)"):
        read_all(tmp_path / "a.tif")


def test_values_that_are_no_numbers_are_refused_where_they_are_read(tmp_path):
    pixels = np.ones((60, 40), np.float32)
    pixels[50, 3] = np.nan
    with open_windows(written(tmp_path / "a.tif", pixels, tile=(16, 16)), 1) as image:
        assert image.read(0, 0, 16, 40).all()
        with pytest.raises(FileError, match=r"a\.tif: found 1 of .* NaN"):
            image.read(32, 0, 28, 40)


@pytest.mark.parametrize("subifds", [False, True])
def test_of_a_pyramid_the_picture_itself_is_read(tmp_path, subifds):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        options = {"photometric": "rgb", "tile": (32, 32), "compression": "zlib", "metadata": None}
        file.write(COLOURS, subifds=2 * subifds, **options)
        for step in (2, 4):
            file.write(COLOURS[::step, ::step], subfiletype=1, **options)
    check_windows(path, 3)
    assert np.array_equal(decode_image(path, 3), COLOURS)
    tifffile.imwrite(path, COLOURS[::8, ::8], append=True, metadata=None)  # which nothing calls a copy
    with pytest.raises(FileError, match=r"found . pages; expected one"):
        read_all(path)


@pytest.mark.nightly
def test_windows_over_type_byte_order_planes_compression_and_channels(tmp_path):
    from tests.unetpp.images.test_tiff_pages import check_sweep

    def through_windows(path, channels):
        return read_all(path, channels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.unetpp.images.test_tiff_pages.decode_image", through_windows)
        check_sweep(tmp_path, SWEEP)
