"""What the headers of a TIFF declare is read without its pixels, and a header that lies ends the reading."""

import struct

import numpy as np
import pytest
from PIL import Image

from tests.unetpp.images.tiffs import write_tiff
from unetpp.errors import FileError
from unetpp.images.decode import decode_image
from unetpp.images.tiff import find_pages, read_page

RNG = np.random.default_rng(0)


def pages_of(path):
    with path.open("rb") as file:
        pages = find_pages(file)
        return [read_page(file, pages, index) for index in range(len(pages))]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_each_page_declares_its_size_and_type_in_any_byte_order(tmp_path, order, big, kind):
    arrays = [np.zeros((5, 7), kind), np.zeros((4, 3, 3), kind)]
    found = pages_of(write_tiff(tmp_path / "a.tif", *arrays, order=order, big=big))
    assert [(page.height, page.width, page.channels, page.photometric) for page in found] == [
        (5, 7, 1, 1),
        (4, 3, 3, 2),
    ]
    assert {f"{page.sample}{page.bits}" for page in found} == {kind}
    assert {(page.orientation, page.lossy) for page in found} == {(1, False)}


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_page_that_lists_fewer_parts_than_its_size_needs_tells_how_many_are_missing(tmp_path, mode):
    """Pillow would leave their pixels black without a word."""
    picture = Image.fromarray(np.full((600, 500, 3), 7, np.uint8)).convert(mode)
    picture.save(tmp_path / "a.tif", tiffinfo={278: 50})
    (page,) = pages_of(tmp_path / "a.tif")
    assert page.missing == 0
    lies = write_tiff(tmp_path / "b.tif", np.zeros((5, 7), np.uint8), tags={257: 12, 278: 5})
    assert pages_of(lies)[0].missing == 2
    with pytest.raises(FileError, match=r"b\.tif: found a broken file \(2 strips or tiles are missing\)"):
        decode_image(lies, 1)
    assert write_tiled(tmp_path / "d.tif", 16, {256: 40, 257: 20}).missing == 5


def write_tiled(path, side, tags):
    """One tile; its list is what a strip's is, under another tag."""
    content = write_tiff(path, np.zeros((side, side), np.uint8), tags={322: side, 323: side, **tags}).read_bytes()
    # 324 in place of 273, and the table sorted or not: readers of these headers do not mind.
    path.write_bytes(content.replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 324, 4)))
    return pages_of(path)[0]


def test_pages_that_run_in_circles_are_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tif", np.zeros((2, 2), np.uint8))
    content = bytearray(path.read_bytes())
    (entries,) = struct.unpack_from("<H", content, 8)
    struct.pack_into("<I", content, 10 + 12 * entries, 8)  # the next page is the first
    path.write_bytes(content)
    with pytest.raises(ValueError, match="page 2 leads back"):
        pages_of(path)


def test_a_header_that_is_cut_anywhere_is_refused(tmp_path):
    whole = write_tiff(tmp_path / "a.tif", np.zeros((2, 2, 3), np.uint16)).read_bytes()
    header_bytes = len(whole) - 24
    for end in range(4, header_bytes):
        (tmp_path / "b.tif").write_bytes(whole[:end])
        with pytest.raises((ValueError, struct.error)):
            pages_of(tmp_path / "b.tif")
    (tmp_path / "b.tif").write_bytes(whole[:header_bytes])
    assert len(pages_of(tmp_path / "b.tif")) == 1
