"""TIFF as tifffile writes it and as others do: the right values or a refusal by name, and never anything else."""

import itertools
import struct
import subprocess
import sys
from contextlib import suppress
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.unetpp.images.tiffs import write_tiff
from unetpp.errors import FileError
from unetpp.images import tiff_pages
from unetpp.images.decode import decode_image, decode_mask
from unetpp.images.pictures import Limits, count_pages, read_picture

RNG = np.random.default_rng(0)
Y, X = np.mgrid[:48, :64]
STAINS = np.stack([X, Y * 3, X * 0 + 99], 2).astype(np.uint8)
NUMBERS = (X // 9 + Y // 9 * 7).astype(np.uint8)

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "f2", "f4", "f8")
PREDICTED = ("lzw predicted", "zlib predicted", "zstd predicted")
LOSSLESS = ("none", "lzw", "zlib", "packbits", "lzma", "zstd", *PREDICTED)
PACKINGS = (*LOSSLESS, "jpeg", "jpeg2000", "jpegxl", "webp", "png")
CHANNELS = (
    (1, "minisblack"),
    (2, "minisblack"),
    (3, "minisblack"),
    (3, "rgb"),
    (4, "minisblack"),
    (4, "rgb"),
    (9, "rgb"),
)
SWEEP = list(itertools.product(DTYPES, "<>", ("contig", "separate"), PACKINGS, CHANNELS))


def decoded(decode, path, *arguments):
    with suppress(FileError):
        return decode(path, *arguments)


def check_sweep(folder, combinations):
    """Each file is read right or refused, as image and as mask; what there is no reason to refuse is read."""
    path, outcomes = folder / "a.tif", {"image": 0, "mask": 0, "refused": 0, "not written": 0}
    for dtype, order, planes, packing, (channels, kind) in combinations:
        case = (dtype, order, planes, packing, channels, kind)
        picture = np.stack([(X * (n + 1) + Y * (3 - n)) % 113 for n in range(channels)], 2).astype(dtype)
        data = np.moveaxis(picture, 2, 0) if planes == "separate" and channels > 1 else picture
        options: dict[str, Any] = {"planarconfig": planes} if channels > 1 else {}
        try:
            options |= (
                {"compression": packing.split()[0], "predictor": packing in PREDICTED} if packing != "none" else {}
            )
            data = data[..., 0] if channels == 1 else data
            tifffile.imwrite(path, data, byteorder=order, photometric=kind, **options)
        except Exception:
            outcomes["not written"] += 1  # there is no such file
            continue
        shown = picture[:, :, : 1 if channels < 3 else 3]
        image, mask = decoded(decode_image, path, 3), decoded(decode_mask, path)
        if packing in LOSSLESS and (channels in (1, 3) or (channels, kind) == (4, "rgb")):
            assert image is not None, case
            assert mask is not None or channels > 1, case
        if image is not None:
            error = np.abs(image - np.broadcast_to(shown, (48, 64, 3)).astype(float)).mean()
            assert error == 0 or (packing == "jpeg" and error < 12), (case, error)
        if mask is not None:
            assert channels == 1, case
            assert np.array_equal(mask, picture[:, :, 0]), case
        outcomes["image"] += image is not None
        outcomes["mask"] += mask is not None
        outcomes["refused"] += image is None and mask is None
    return outcomes


def test_files_over_type_byte_order_planes_compression_and_channels_are_read_right_or_refused(tmp_path):
    outcomes = check_sweep(tmp_path, SWEEP[::29])
    assert min(outcomes.values()) > 3, outcomes


@pytest.mark.nightly
def test_each_file_over_type_byte_order_planes_compression_and_channels_is_read_right_or_refused(tmp_path):
    outcomes = check_sweep(tmp_path, SWEEP)
    assert len(SWEEP) - outcomes["not written"] > 2400, outcomes
    assert outcomes["image"] > 1200, outcomes


def written(path, data, **options):
    tifffile.imwrite(path, data, **options)
    return path


def inverted(values):
    return {"data": values, "photometric": "miniswhite", "metadata": None}


COLOURMAP = RNG.integers(0, 256, (3, 256)).astype(np.uint16)
FLOATS = ((X - Y) / 64).astype(np.float32)
READ = {  # what is written, and the image
    "three stains": ({"data": STAINS, "photometric": "minisblack", "planarconfig": "contig"}, STAINS),
    "tiles": ({"data": STAINS, "tile": (16, 32), "compression": "zlib"}, STAINS),
    "tiles of planes": ({"data": np.moveaxis(STAINS, 2, 0), "photometric": "rgb", "tile": (32, 16)}, STAINS),
    "strips": ({"data": STAINS.astype(">u2"), "byteorder": ">", "rowsperstrip": 7, "compression": "lzma"}, STAINS),
    "predictor 2": ({"data": NUMBERS.astype("u4") * 9999, "predictor": 2, "compression": "lzw"}, NUMBERS * 9999.0),
    "predictor 3": ({"data": FLOATS, "predictor": 3, "compression": "zstd", "byteorder": ">"}, FLOATS),
    "1 bit": ({"data": NUMBERS % 2 > 0, "photometric": "minisblack", "compression": "zlib"}, NUMBERS % 2 * 255),
    "1 bit, 0 as white": ({"data": NUMBERS % 2 > 0, "photometric": "miniswhite"}, 255 - NUMBERS % 2 * 255),
    "4 bits": ({"data": NUMBERS % 16, "bitspersample": 4}, NUMBERS % 16 * 17),
    "12 bits": ({"data": NUMBERS.astype("u2") * 60, "bitspersample": 12}, NUMBERS.astype("u2") * 60),
    "a palette of 16 bits": (
        {"data": NUMBERS, "photometric": "palette", "colormap": COLOURMAP * 257},
        COLOURMAP.T[NUMBERS],
    ),
    "a palette of 8 bits": ({"data": NUMBERS, "photometric": "palette", "colormap": COLOURMAP}, COLOURMAP.T[NUMBERS]),
    "0 as white": (inverted(NUMBERS), 255 - NUMBERS),
    "OME": ({"data": STAINS, "ome": True, "photometric": "rgb"}, STAINS),
    "alpha": ({"data": np.dstack([STAINS, NUMBERS]), "photometric": "rgb", "extrasamples": ["unassalpha"]}, STAINS),
    "opaque": (
        {"data": np.dstack([STAINS, STAINS[:, :, 0] * 0 + 255]), "photometric": "rgb", "extrasamples": ["assocalpha"]},
        STAINS,
    ),
    "BigTIFF": ({"data": STAINS, "bigtiff": True, "byteorder": ">"}, STAINS),
}


@pytest.mark.parametrize(("options", "expected"), READ.values(), ids=READ)
def test_values_are_those_that_were_written_whatever_the_name(tmp_path, options, expected):
    image = decode_image(written(tmp_path / "a.png", **options), 3)
    assert np.array_equal(image, expected if expected.ndim == 3 else np.stack([expected] * 3, 2))


def jpeg_bomb(path):
    content = bytearray(written(path, STAINS, compression="jpeg").read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = b"\xea\x60\xea\x60"
    path.write_bytes(content)


def cut_jpeg(path):
    content = bytearray(written(path, STAINS, compression="jpeg").read_bytes())
    content[-20:] = bytes(20)
    path.write_bytes(content)


def pyramid(path):
    """A small picture in front of the one that it is of, as DNG has it."""
    with tifffile.TiffWriter(path) as tif:
        tif.write(STAINS[::4, ::4], subfiletype=1, subifds=1)
        tif.write(STAINS)


def circle(path, length):
    write_tiff(path, *[NUMBERS] * length)
    with tifffile.TiffFile(path) as tif:
        at = tif.pages.get(length - 1).offset
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, at + 2 + 12 * struct.unpack_from("<H", content, at)[0], 8)
    path.write_bytes(content)


def changed(path, old, new):
    """A tag's number, type and count of a sound file, changed."""
    path.write_bytes(
        write_tiff(path, NUMBERS).read_bytes().replace(struct.pack("<HHI", *old), struct.pack("<HHI", *new))
    )


def cut(path, **options):
    path.write_bytes(written(path, RNG.integers(0, 9, (48, 64)).astype(np.uint8), **options).read_bytes()[:-400])


NOT_FEWER = r"found 5 planes and 1 page headers"
REFUSED = {
    "an ImageJ stack behind one header": (
        lambda path: written(path, NUMBERS, metadata=None, description="ImageJ=1.54f\nimages=5\nslices=5\n"),
        NOT_FEWER,
    ),
    "a stack of tifffile behind one header": (
        lambda path: written(path, np.stack([NUMBERS] * 5), truncate=True, photometric="minisblack"),
        NOT_FEWER,
    ),
    "a volume in one page": (
        lambda path: written(path, np.stack([NUMBERS] * 16), volumetric=True),
        "found 16 planes and 1 page headers",
    ),
    "2 channels": (
        lambda path: written(path, STAINS[:, :, :2], planarconfig="contig"),
        "found (2 channels; expected|a mask of 2 channels)",
    ),
    "alpha that is multiplied in": (
        lambda path: written(path, np.dstack([STAINS, NUMBERS]), photometric="rgb", extrasamples=["assocalpha"]),
        "found colours that are multiplied by their transparency",
    ),
    "CMYK": (
        lambda path: written(path, np.dstack([STAINS, NUMBERS]), photometric="separated"),
        "found a TIFF of 4 channels of 8 bits .*SEPARATED",
    ),
    "YCbCr without JPEG": (lambda path: write_tiff(path, STAINS, tags={262: 6}), "found a TIFF of 3 .*YCBCR"),
    "a code that the bytes do not follow": (
        lambda path: write_tiff(path, STAINS, tags={259: 50002}),
        "found a TIFF of 3 .*JPEGXL.*with LZW",
    ),
    "complex numbers": (lambda path: written(path, NUMBERS.astype("c8")), "found a TIFF of 1 .*complex64"),
    "a small copy": (pyramid, "found a TIFF of 3 channels .*, which it calls a smaller copy"),
    "several series": (
        lambda path: [written(path, one, append=n > 0) for n, one in enumerate((NUMBERS, STAINS))],
        "found 2 pages; expected one",
    ),
    "a JPEG that is cut": (cut_jpeg, "found a broken file .*a JPEG in it is truncated or larger"),
    "a JPEG larger than declared": (jpeg_bomb, "found a broken file .*a JPEG in it is truncated or larger"),
    "a circle": (lambda path: circle(path, 2), "found (2 pages|a broken file)"),
    "a circle of 150 pages": (lambda path: circle(path, 150), r"found a broken file \(more than 100000 pages"),
    "huge tiles": (
        lambda path: write_tiff(path, NUMBERS, tags={259: 8, 322: 2**16, 323: 2**16}),
        "found a broken file .*its tiles",
    ),
    "no strip": (lambda path: write_tiff(path, NUMBERS, tags={279: 0}), r"found a broken file .1 strips or tiles"),
    "a short strip": (lambda path: write_tiff(path, NUMBERS, tags={279: 99}), "found a broken file .*too short"),
    "a type of tag that is none": (
        lambda path: changed(path, (258, 4, 1), (258, 77, 1)),
        "found a broken file .*invalid data type 77",
    ),
    "a width of many numbers": (
        lambda path: changed(path, (256, 4, 1), (256, 4, 33)),
        "found a broken file .*its size is",
    ),
    **{
        f"cut, {packing}": (lambda path, packing=packing: cut(path, compression=packing), "found a broken file")
        for packing in (None, "lzw", "zlib", "lzma", "zstd", "packbits")
    },
}


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_read_wrong_is_refused_as_image_and_mask_alike(tmp_path, write, message):
    write(tmp_path / "a.tif")
    for decode in (decode_mask, lambda path: decode_image(path, 3)):
        with pytest.raises(FileError, match=rf"a\.tif: {message}"):
            decode(tmp_path / "a.tif")


def test_bits_of_fax_and_their_truncation(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(NUMBERS % 2 > 0).save(path, compression="group4")
    assert np.array_equal(decode_mask(path), NUMBERS % 2)
    path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(FileError, match=r"found a broken file"):
        decode_mask(path)


def test_pages_are_counted_where_each_has_a_header(tmp_path):
    path = tmp_path / "a.tif"
    for options in ({"imagej": True}, {"ome": True}, {"metadata": None}, {"compression": "zlib"}):
        written(path, np.stack([NUMBERS, NUMBERS + 1]), photometric="minisblack", **options)
        assert count_pages(path, Limits()) == 2
        assert np.array_equal(decode_mask(path, page=2), NUMBERS + 1)
    with pytest.raises(FileError, match=NOT_FEWER):
        count_pages(written(path, np.stack([NUMBERS] * 5), truncate=True, photometric="minisblack"), Limits())


def test_orientation_stands_in_xmp_too(tmp_path):
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    path = written(tmp_path / "a.tif", NUMBERS, extratags=[(700, 1, len(xmp), xmp, True)])
    with pytest.raises(FileError, match="orientation tag 6"):
        decode_image(path, 1)


def test_many_pages_are_read_without_a_look_at_all_of_them(tmp_path):
    path = written(tmp_path / "a.tif", np.zeros((300, 8, 8), np.uint8), photometric="minisblack")
    parsed = []
    original = tifffile.TiffPage.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tifffile.TiffPage, "__init__", lambda self, *a, **k: (parsed.append(1), original(self, *a, **k))[1]
        )
        read_picture(path, 200, Limits())
    assert len(parsed) < 5


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    for name, package, options in (("a", "tifffile", {}), ("b", "imagecodecs", {"compression": "lzw"})):
        path = written(tmp_path / f"{name}.tif", NUMBERS, **options)
        assert decode_mask(path).any()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(FileError, match=rf"{name}\.tif: found .*{package}.*: pip install 'PATH\[images\]'"):
                decode_mask(path)


def test_tifffile_is_imported_where_a_tiff_is_read_and_not_before(tmp_path):
    code = f"""
import sys, unetpp, unetpp.images.decode
assert not {{"tifffile", "imagecodecs"}} & set(sys.modules)
print(unetpp.images.decode.decode_mask({str(written(tmp_path / "a.tif", NUMBERS))!r}).sum())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout), done.stderr) == (NUMBERS.sum(), "")


def test_codecs_that_are_read_stay_within_what_is_declared():
    """A bomb of each: 64 MiB of zeros where a thousand bytes are due."""
    for name in ("deflate", "lzma", "zstd", "lzw"):
        bomb = getattr(imagecodecs, f"{name}_encode")(bytes(2**26))
        with suppress(RuntimeError):
            assert len(getattr(imagecodecs, f"{name}_decode")(bomb, out=1000)) <= 1000
    assert set(tiff_pages.COMPRESSIONS) == {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}
