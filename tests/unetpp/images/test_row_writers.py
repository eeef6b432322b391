"""Laws of pictures written in rows: they are read back as they were given, and keep their place."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetpp.images.decode import decode_image
from unetpp.images.row_writers import png_rows, tiff_rows
from unetpp.images.tiff_windows import GEO_TAGS, RESOLUTION
from unetpp.images.windows import open_windows

RNG = np.random.default_rng(0)
GEO = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 440720.0, 100000.0, 0.0), True),
    (34735, 3, 8, (1, 1, 0, 1, 1024, 0, 1, 1), True),
    (34736, 12, 2, (6378137.0, 298.257), True),
    (34737, 2, 8, "WGS 84|\0", True),
    (42112, 2, 12, "<GDALMeta/>\0", True),
    (42113, 2, 2, "0\0", True),
]


def pixels(shape, dtype):
    return RNG.integers(0, 256, shape).astype(dtype)


def give(write, picture, step=70):
    for top in range(0, len(picture), step):
        write(picture[top : top + step])


@pytest.mark.parametrize(
    ("shape", "dtype"), [((300, 513), "u1"), ((257, 40), "u2"), ((600, 300, 3), "u1"), ((90, 70, 5), "f2")]
)
def test_a_tiff_is_read_back_as_its_rows_were_given(tmp_path, shape, dtype):
    picture = pixels(shape, dtype)
    with tiff_rows(tmp_path / "a.tif", shape, picture.dtype) as write:
        give(write, picture)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages.first
        assert (page.is_tiled, page.compression, page.dtype) == (True, 8, picture.dtype)
        assert np.array_equal(page.asarray(), picture)
    if dtype == "u1":
        assert np.array_equal(decode_image(tmp_path / "a.tif", 3)[..., -1], picture.reshape(*shape[:2], -1)[..., -1])


@pytest.mark.parametrize(("shape", "dtype"), [((300, 513), "u1"), ((257, 40), "u2"), ((60, 300, 3), "u1")])
def test_a_png_is_read_back_as_its_rows_were_given(tmp_path, shape, dtype):
    picture = pixels(shape, dtype)
    with png_rows(tmp_path / "a.png", shape, picture.dtype) as write:
        give(write, picture)
    with Image.open(tmp_path / "a.png") as image:
        image.verify()
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), picture)


def test_a_mask_lies_where_its_image_lies(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", pixels((300, 400, 3), "u1"), extratags=GEO, resolution=(2000, 3000), resolutionunit=3
    )
    with (
        open_windows(tmp_path / "a.tif", 3) as image,
        tiff_rows(tmp_path / "b.tif", image.shape[:2], np.dtype("u1"), image.tags) as write,
    ):
        give(write, pixels((300, 400), "u1"))
    with tifffile.TiffFile(tmp_path / "a.tif") as before, tifffile.TiffFile(tmp_path / "b.tif") as after:
        old, new = before.pages.first.tags, after.pages.first.tags
        for code in (*GEO_TAGS, *RESOLUTION):
            assert old.valueof(code) == new.valueof(code), code
        assert {tag.code for tag in new} & {42112, 42113} == set()  # true of the image's numbers alone
        assert [new[code].dtype for code in (33550, 34735, 34737)] == [12, 3, 2]


@pytest.mark.parametrize("writer", [tiff_rows, png_rows])
def test_who_stops_early_is_told_his_own_error(tmp_path, writer):
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "a", (600, 300), np.dtype("u1")) as write:
        write(pixels((300, 300), "u1") // (1 // 0))


def test_a_disk_that_does_not_take_it_ends_the_writing():
    with (
        pytest.raises(OSError, match="No space left"),
        tiff_rows(Path("/dev/full"), (9000, 9000), np.dtype("u1")) as write,
    ):
        give(write, RNG.integers(0, 256, (9000, 9000), np.uint8), 500)
