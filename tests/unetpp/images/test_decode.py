"""Files to arrays: every pixel type that is read, and every file that is refused by name."""

import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections import Counter
from contextlib import suppress

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from tifffile import TiffPage

from tests.unetpp.images.pngs import deep_png, png, png_chunk
from tests.unetpp.images.tiffs import write_tiff
from unetpp.errors import FileError, UserError
from unetpp.images.decode import decode_image, decode_mask
from unetpp.images.pictures import Limits, count_pages, read_picture
from unetpp.images.pixels import convert

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), np.uint8)
DEEP_GREY = RNG.integers(0, 2**16, (5, 7), np.uint16)
DEEP_COLOUR = RNG.integers(0, 2**16, (5, 7, 3), np.uint16)
LABELS = RNG.integers(0, 4, (5, 7), np.uint8)


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


ALPHA = RNG.integers(0, 256, (5, 7), np.uint8)
RGBA, LA = np.dstack([COLOUR, ALPHA]), np.dstack([GREY, ALPHA])


@pytest.mark.parametrize(
    ("suffix", "stored", "expected"),
    [
        *((suffix, GREY, GREY) for suffix in ("png", "tif", "bmp")),
        *((suffix, DEEP_GREY, DEEP_GREY) for suffix in ("png", "tif")),
        ("png", RGBA, COLOUR),
        ("png", LA, GREY),
        ("png", GREY > 99, (GREY > 99) * np.uint8(255)),
    ],
)
def test_images_keep_their_values_without_alpha_and_grey_is_repeated(tmp_path, suffix, stored, expected):
    path = save(tmp_path / f"a.{suffix}", stored)
    colour = expected if expected.ndim == 3 else np.stack([expected] * 3, axis=2)
    image = decode_image(path, 3)
    assert image.dtype == expected.dtype
    assert np.array_equal(image, colour)
    if expected.ndim == 2:
        assert np.array_equal(decode_image(path, 1), expected[:, :, None])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("alpha", [False, True])
def test_sixteen_bit_colour_keeps_all_its_bits(tmp_path, suffix, alpha):
    opaque = np.full((5, 7, 1), 2**16 - 1, np.uint16)
    stored = np.concatenate([DEEP_COLOUR[:, :, ::-1], opaque], axis=2) if alpha else DEEP_COLOUR[:, :, ::-1]
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), stored)
    image = decode_image(path, 3)
    assert image.dtype == np.uint16
    assert np.array_equal(image, DEEP_COLOUR)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_them_in_any_form(tmp_path, channels, interlaced):
    pixels, hidden = RNG.integers(0, 2**16, (5, 7, channels), np.uint16), b""
    if channels % 2:  # a colour that is transparent, gamma, and how many bits the camera had
        hidden = png_chunk(b"tRNS", pixels[0, 0].astype(">u2").tobytes()) + png_chunk(b"sBIT", bytes([12] * channels))
    (tmp_path / "a.png").write_bytes(
        deep_png(pixels, interlaced, png_chunk(b"gAMA", struct.pack(">I", 45455)) + hidden)
    )
    shown = pixels[:, :, : 1 if channels < 3 else 3]
    assert np.array_equal(decode_image(tmp_path / "a.png", 3), np.broadcast_to(shown, (5, 7, 3)))


FOREIGN = {
    "JPEG in CMYK": ({"format": "JPEG", "mode": "CMYK"}, "found colours of type CMYK"),
    "animation": ({"format": "PNG", "save_all": True, "append_images": [Image.new("RGB", (7, 5))]}, "found 2 pages"),
    "animated GIF": ({"format": "GIF", "save_all": True, "append_images": [Image.new("RGB", (7, 5))]}, "found 2 pages"),
    **{name: ({"format": name}, "found no image but a file that begins") for name in ("PPM", "JPEG2000")},
}


@pytest.mark.parametrize(("options", "message"), FOREIGN.values(), ids=FOREIGN)
def test_what_the_decoders_were_not_made_for_is_refused_whatever_its_name(tmp_path, options, message):
    path = save(tmp_path / "a.png", COLOUR, **options)
    for decode in (decode_mask, lambda path: decode_image(path, 1)):
        with pytest.raises(FileError, match=rf"a\.png: {message}"):
            decode(path)


@pytest.mark.parametrize("name", ["a.webp", "a.gif"])
def test_masks_and_images_in_webp_and_gif_keep_their_values(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {}
    labels = np.repeat(np.arange(5, dtype=np.uint8)[:, None], 7, axis=1) * 51
    path = save(tmp_path / name, labels, **options)
    assert np.array_equal(decode_mask(path), labels)
    assert np.array_equal(decode_image(path, 1)[:, :, 0], labels)


def test_a_webp_mask_that_compression_changed_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"a\.webp: found a WEBP mask, whose values were changed by compression"):
        decode_mask(save(tmp_path / "a.webp", GREY))


def test_colour_becomes_grey_as_pillow_weights_it(tmp_path):
    grey = decode_image(save(tmp_path / "a.png", COLOUR), 1)[:, :, 0]
    assert np.abs(grey.astype(int) - np.asarray(Image.fromarray(COLOUR).convert("L"))).max() <= 1


@pytest.mark.parametrize("grey", [GREY, DEEP_GREY], ids=["8 bits", "16 bits"])
def test_grey_to_colour_and_back_changes_nothing(grey):
    assert np.array_equal(convert(convert(grey[:, :, None], 3), 1)[:, :, 0], grey)


KINDS = ["int8", "int16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_numbers_become_float32_with_their_values(tmp_path, kind, order, capsys):
    low, high = (0, 2**32 - 2**9) if kind == "uint32" else (-100, 100)
    values = RNG.integers(low, high, (5, 7)) // 2**8 * 2**8 if kind == "uint32" else RNG.integers(low, high, (5, 7))
    values = values.astype(kind)
    if kind.startswith("float"):
        values = values / np.asarray(8, kind)
    image = decode_image(write_tiff(tmp_path / "a.tif", values, order=order), 3)
    assert image.dtype == np.float32
    assert np.array_equal(image, np.stack([values] * 3, axis=2))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colour_of_floats_keeps_its_values(tmp_path, kind, channels):
    values = RNG.normal(size=(5, 7, channels)).astype(np.float32).astype(kind)
    image = decode_image(write_tiff(tmp_path / "a.tif", values), 3)
    assert image.dtype == np.float32
    assert np.array_equal(image, values[:, :, :3])
    grey = decode_image(tmp_path / "a.tif", 1)
    assert grey == pytest.approx(values[:, :, :3] @ [[0.299], [0.587], [0.114]], abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_what_is_not_finite_is_refused_by_name(tmp_path, bad, kind):
    with np.errstate(over="ignore"):
        values = np.full((5, 7), 1.5, kind)
        values[1, 2] = bad
    with pytest.raises(FileError, match=r"found 1 of 35 values that are NaN, infinite or beyond.*: replace them"):
        decode_image(write_tiff(tmp_path / "a.tif", values), 1)


@pytest.mark.parametrize(("kind", "value"), [("float64", 0.1), ("int32", 2**24 + 1), ("uint32", 2**32 - 1)])
def test_values_that_do_not_fit_into_float32_are_rounded_and_it_is_told_once(tmp_path, kind, value, capsys):
    values = np.full((5, 7), value, kind)
    for name in ("a.tif", "b.tif"):
        assert (decode_image(write_tiff(tmp_path / name, values), 1) == np.float32(value)).all()
    told = capsys.readouterr().out
    assert told.startswith(f"note: {tmp_path / 'a.tif'}: {kind} pixels are rounded to float32")
    assert told.count("\n") == 1


def test_grey_of_which_0_is_white_is_inverted_in_8_bits_and_refused_where_it_is_not(tmp_path):
    inverted = write_tiff(tmp_path / "a.tif", GREY, tags={262: 0})
    assert np.array_equal(decode_image(inverted, 1)[:, :, 0], 255 - GREY)
    for values in (DEEP_GREY, GREY.astype(np.float32)):
        with pytest.raises(FileError, match=r"b\.tif: found \d+-bit pixels with 0 as white"):
            decode_image(write_tiff(tmp_path / "b.tif", values, tags={262: 0}), 1)


def test_a_stack_of_pages_is_refused_where_no_page_is_asked_for(tmp_path):
    path = write_tiff(tmp_path / "a.tif", GREY, GREY, GREY)
    for decode in (lambda: decode_image(path, 1), lambda: decode_mask(path)):
        with pytest.raises(FileError, match=r"found 3 pages; expected one: .*prepare\.pages"):
            decode()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_page_is_decoded_by_its_number_from_1_on(tmp_path, kind, channels, big):
    shape = (5, 7) if channels == 1 else (5, 7, 3)
    pages = [RNG.integers(0, 200, shape).astype(kind) for _ in range(4)]
    path = write_tiff(tmp_path / "a.tif", *pages, big=big)
    assert count_pages(path, Limits()) == 4
    for number, page in enumerate(pages, start=1):
        image = decode_image(path, channels, page=number)
        assert np.array_equal(image, page.reshape(5, 7, channels))
    if channels == 1 and kind.startswith("uint"):
        assert np.array_equal(decode_mask(path, page=3), pages[2])
    for number in (0, 5):
        with pytest.raises(FileError, match=f"found 4 pages; expected page {number}"):
            decode_image(path, channels, page=number)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group4"])
@pytest.mark.parametrize("big", [False, True])
def test_pages_of_packed_files_are_told_apart_as_well(tmp_path, compression, big):
    pages = [RNG.integers(0, 2, (33, 47), np.uint8) * np.uint8(255) for _ in range(4)]
    pictures = [Image.fromarray(page).convert("1" if compression == "group4" else "L") for page in pages]
    path = tmp_path / "a.tif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], compression=compression, big_tiff=big)
    for number in (4, 1, 3):
        assert np.array_equal(decode_image(path, 1, page=number)[:, :, 0], pages[number - 1])


def test_files_of_one_page_have_a_first_page_and_no_second(tmp_path):
    for name in ("a.png", "a.jpg", "a.tif"):
        path = save(tmp_path / name, GREY)
        assert count_pages(path, Limits()) == 1
        assert np.array_equal(decode_image(path, 1, page=1), decode_image(path, 1))
        with pytest.raises(FileError, match="found 1 pages; expected page 2"):
            decode_image(path, 1, page=2)


def broken(path, kind):
    save(path, RNG.integers(0, 256, (64, 64), np.uint8))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    contents = {
        "truncated": whole[: len(whole) // 2],
        "headless": whole[20:],
        "flipped": bytes(flipped),
        "text": b"hello, I am no image",
        "empty": b"",
    }
    path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize("decode", [lambda path: decode_image(path, 3), decode_mask], ids=["image", "mask"])
@pytest.mark.parametrize("kind", ["truncated", "headless", "flipped", "text", "empty"])
def test_a_broken_file_is_refused_by_name_with_what_was_found_and_expected(tmp_path, kind, decode):
    path = broken(tmp_path / "cell.png", kind)
    with pytest.raises(UserError, match=r"cell\.png: found .*; expected a whole PNG.*") as caught:
        decode(path)
    assert {"empty": "0 bytes", "text": "hello"}.get(kind, "") in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_truncated_files_of_other_formats_are_refused(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", RNG.integers(0, 256, (64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UserError, match=rf"a\.{suffix}: found .*; expected"):
        decode_image(path, 1)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        decode_image(tmp_path / "none.png", 3)
    with pytest.raises(UserError, match="found a folder"):
        decode_image(tmp_path, 3)


@pytest.fixture
def no_decoding(monkeypatch):
    """Fails where pixels are asked for."""

    def fail(*_, **__):
        raise AssertionError("decoded")

    for owner, name in ((Image.Image, "load"), (PngImageFile, "load"), (TiffPage, "asarray")):
        monkeypatch.setattr(owner, name, fail)


@pytest.mark.usefixtures("no_decoding")
def test_an_image_that_declares_too_many_pixels_is_refused_by_its_header(tmp_path):
    (tmp_path / "a.png").write_bytes(png(50_000, 50_000, 8, bytes(100)))
    write_tiff(tmp_path / "a.tif", GREY, tags={256: 50_000, 257: 50_000})
    write_tiff(tmp_path / "b.tif", GREY.astype(np.float64), tags={256: 50_000, 257: 50_000})
    for name in ("a.png", "a.tif", "b.tif"):
        for decode in (lambda path: decode_image(path, 3), decode_mask):
            with pytest.raises(FileError, match=r"found too many pixels \(50000x50000 px\).*prepare\.max_pixels"):
                decode(tmp_path / name)
    with pytest.raises(AssertionError, match="decoded"):  # the test can fail
        decode_image(save(tmp_path / "c.tif", GREY), 1)


def test_the_caps_are_those_that_are_given(tmp_path):
    path = save(tmp_path / "a.png", GREY)
    assert decode_image(path, 1, limits=Limits(max_pixels=35)).shape == (5, 7, 1)
    with pytest.raises(FileError, match=r"7x5 px\); expected at most prepare\.max_pixels = 34: cut it into tiles"):
        decode_image(path, 1, limits=Limits(max_pixels=34))
    large = tmp_path / "large.png"
    large.write_bytes(path.read_bytes() + bytes(2**20))
    assert decode_image(large, 1, limits=Limits(max_file_mib=2)).shape == (5, 7, 1)
    with pytest.raises(FileError, match=r"found 1 MiB; expected at most prepare\.max_file_mib = 1: cut it up"):
        decode_image(large, 1, limits=Limits(max_file_mib=1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_a_picture_beyond_pillows_own_guard_is_read_and_the_guard_stays_as_it_was(tmp_path, suffix, monkeypatch):
    path = save(tmp_path / f"a.{suffix}", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image(path, 1).shape == (5, 7, 1)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)


def test_to_import_the_decoders_leaves_pillows_guard_as_it_was():
    code = "from PIL import Image; n = Image.MAX_IMAGE_PIXELS; import unetpp, unetpp.images.decode; "
    code += "assert n and n == Image.MAX_IMAGE_PIXELS"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("chunk", [b"iCCP", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_bomb_inside_a_chunk_of_a_png_costs_no_memory(tmp_path, chunk, bits):
    bomb = zlib.compress(bytes(2**28), 9)
    head = {b"iCCP": b"name\0\0", b"zTXt": b"name\0\0", b"iTXt": b"name\0\1\0\0\0"}[chunk]
    cv2.imwrite(str(tmp_path / "a.png"), COLOUR if bits == 8 else DEEP_COLOUR)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:33] + png_chunk(chunk, head + bomb) + whole[33:])
    tracemalloc.start()
    message = ""
    try:
        decode_image(tmp_path / "a.png", 3)
    except FileError as error:
        message = str(error)
    assert message == "" or "found a broken file (Decompressed data too large" in message
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


@pytest.mark.parametrize(
    ("suffix", "mask"),
    [
        *((suffix, LABELS) for suffix in ("png", "tif", "bmp")),
        *((suffix, LABELS.astype(np.uint16) * 20_000) for suffix in ("png", "tif")),
        ("tif", LABELS.astype(np.int32) * 20_000),
        ("tif", np.array([[0, 1], [2**31, 2**32 - 1]], np.uint32)),
        ("tif", np.array([[0, 1], [2**31, 2**63 - 1]], np.int64)),
        ("tif", LABELS.astype(np.float32)),
        ("png", LABELS > 1),
    ],
)
def test_masks_keep_their_values(tmp_path, suffix, mask):
    path = tmp_path / f"a.{suffix}"
    found = decode_mask(write_tiff(path, mask) if mask.dtype.itemsize > 3 else save(path, mask))
    assert np.array_equal(found, mask.astype(np.int64))


REFUSED = {
    "float32": (lambda path: write_tiff(path, LABELS.astype(np.float32) / 2), "a mask of floating-point values"),
    "NaN": (lambda path: write_tiff(path, LABELS * np.nan), "a mask of floating-point values"),
    "beyond int64": (lambda path: write_tiff(path, np.full((5, 7), 2**63, np.uint64)), "the mask value 9223372036854"),
    "negative": (lambda path: write_tiff(path, np.full((5, 7), -3, np.int32)), "the mask value -3"),
    "transparent": (
        lambda path: save(path, np.dstack([np.zeros((5, 7, 3), np.uint8), LABELS * 60]), format="PNG"),
        "a mask with transparent parts",
    ),
    "JPEG": (lambda path: save(path, LABELS, format="JPEG"), "a JPEG mask.*export"),
    "JPEG in a TIFF": (lambda path: save(path, LABELS, compression="jpeg"), "a JPEG-compressed TIFF mask.*export"),
    "colours": (lambda path: save(path, COLOUR), "a mask in colours"),
    "0 is white": (lambda path: write_tiff(path, LABELS, tags={262: 0}), "a mask with a tag that says that 0 is white"),
}


@pytest.mark.parametrize(("write", "found"), REFUSED.values(), ids=REFUSED)
def test_a_mask_whose_values_may_not_be_labels_is_refused_by_what_it_is_whatever_its_suffix(tmp_path, write, found):
    with pytest.raises(FileError, match=rf"a\.tif: found {found}"):
        decode_mask(write(tmp_path / "a.tif"))


@pytest.mark.parametrize(("kind", "channels"), [("complex64", 1), ("complex64", 5), ("uint16", 17)])
def test_a_type_that_is_not_read_is_refused_by_what_it_is(tmp_path, kind, channels):
    path = write_tiff(tmp_path / "a.tif", np.zeros((5, 7, channels), kind))
    with pytest.raises(FileError, match=rf"a\.tif: found a TIFF of {channels} channels of .*{kind}"):
        decode_image(path, 3)


@pytest.mark.parametrize("kind", ["png", "jpg", "tag of a TIFF"])
def test_a_rotation_tag_is_refused_of_image_and_mask_alike_and_an_upright_one_is_not(tmp_path, kind):
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"a.{kind}"
        if kind == "tag of a TIFF":
            write_tiff(path, LABELS, tags={274: orientation})
        else:
            save(path, LABELS, exif=exif)
        for decode in (decode_mask, lambda path: decode_image(path, 1)):
            if orientation == 6:
                with pytest.raises(FileError, match=r"orientation tag 6.*in image and mask alike"):
                    decode(path)
            elif kind != "jpg" or decode is not decode_mask:
                assert decode(path).shape[:2] == (5, 7)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_masks_of_2_and_4_bits_keep_the_stored_class(tmp_path, bits):
    # Pillow writes no such grey file; a palette file of these bits becomes one by its colour type alone.
    path = tmp_path / "a.png"
    packed = {2: [0b00011011, 0b11100100], 4: [0x01, 0x2F, 0xA0, 0x37]}[bits]
    width = len(packed) * 8 // bits
    path.write_bytes(png(width, 1, bits, bytes([0, *packed])))
    expected = [(byte >> shift) % 2**bits for byte in packed for shift in range(8 - bits, -1, -bits)]
    assert decode_mask(path).tolist() == [expected]


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_masks_of_2_and_4_bits_in_a_tiff_keep_the_stored_class(tmp_path, bits):
    # Rows of whole bytes: the width is that of the pixels in one.
    path = write_tiff(tmp_path / "a.tif", np.array([[0b00011011]], np.uint8), tags={256: 8 // bits, 258: bits})
    assert decode_mask(path).tolist() == [{2: [0, 1, 2, 3], 4: [1, 11]}[bits]]


def test_colour_masks_with_equal_channels_are_read(tmp_path):
    equal = np.stack([LABELS] * 3, axis=2)
    assert np.array_equal(decode_mask(save(tmp_path / "a.png", equal)), LABELS)
    opaque = np.concatenate([equal, np.full((5, 7, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(decode_mask(save(tmp_path / "b.png", opaque)), LABELS)
    cv2.imwrite(str(tmp_path / "c.png"), equal.astype(np.uint16) * 9999)
    assert np.array_equal(decode_mask(tmp_path / "c.png"), LABELS.astype(int) * 9999)


def test_palettes_with_alpha_give_colours_as_images_and_indices_as_masks(tmp_path):
    image = Image.fromarray(LABELS).convert("P")
    image.putdata(LABELS.ravel().tolist())
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [9, 9, 9]], np.uint8)
    image.putpalette(colours.ravel().tolist())
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 7]))
    assert np.array_equal(decode_image(tmp_path / "a.png", 3), colours[LABELS])
    assert np.array_equal(decode_mask(tmp_path / "a.png"), LABELS)


def palette_file(path, indices, colours):
    picture = Image.fromarray(indices)
    picture.putpalette(np.array(colours, np.uint8).ravel().tolist())
    picture.save(path)
    return path


BLACK, WHITE, RED, BLUE, GREYISH = (0, 0, 0), (255, 255, 255), (200, 0, 0), (0, 40, 200), (90, 90, 90)
RAMP = [(255 - n,) * 3 for n in range(256)]
PALETTES = {  # colours, and whether index 0 is surely the background
    "VOC": ([BLACK, RED, BLUE, (1, 60, 1)], True),
    "white under classes": ([WHITE, RED, BLUE, (200, 190, 0)], True),
    "greys": ([BLACK, GREYISH, (170, 170, 170), WHITE], True),
    "adaptive": ([WHITE, BLACK, GREYISH, (9, 9, 9)], False),
    "a rim first": ([(20, 20, 20), WHITE, GREYISH, BLACK], False),
    "an inverted ramp": (RAMP, False),
    "colours in any order": ([RED, BLUE, BLACK, (9, 200, 9)], False),
    "white behind colours": ([RED, BLUE, WHITE, (9, 200, 9)], False),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize(("colours", "sure"), PALETTES.values(), ids=PALETTES)
def test_a_palette_mask_is_read_where_index_0_is_surely_the_background(tmp_path, colours, sure, suffix):
    path = palette_file(tmp_path / f"a.{suffix}", LABELS, colours)
    assert np.array_equal(decode_image(path, 3), np.array(colours, np.uint8)[LABELS])
    if sure:
        assert np.array_equal(decode_mask(path), LABELS)
    else:
        with pytest.raises(FileError, match=r"found a palette mask whose index 0 is the colour .*: save it as"):
            decode_mask(path)


@pytest.mark.parametrize("reduce", ["adaptive", "quantize", "1-bit BMP"])
def test_masks_that_a_tool_has_reduced_to_a_palette_are_right_or_refused(tmp_path, reduce):
    for seed in range(10):
        true = np.random.default_rng(seed).random((20, 20)) < 0.13
        grey = Image.fromarray(true * np.uint8(255))
        if reduce == "1-bit BMP":
            path = tmp_path / "a.bmp"
            grey.convert("1").save(path)
            content = bytearray(path.read_bytes())
            if seed % 2:  # the palette the other way round, and the bits too
                content[54:62] = content[58:62] + content[54:58]
                start = int.from_bytes(content[10:14], "little")
                content[start:] = bytes(255 - byte for byte in content[start:])
            path.write_bytes(content)
        else:
            path, colour = tmp_path / "a.png", grey.convert("RGB")
            picture = (
                colour.quantize(2) if reduce == "quantize" else colour.convert("P", palette=Image.Palette.ADAPTIVE)
            )
            picture.save(path)
        assert np.array_equal(decode_image(path, 1)[:, :, 0] > 0, true)
        with suppress(FileError):
            assert np.array_equal(decode_mask(path) > 0, true)


def test_an_error_is_the_same_after_a_way_through_another_process(tmp_path):
    with pytest.raises(FileError) as caught:
        decode_mask(tmp_path / "none.png")
    back = pickle.loads(pickle.dumps(caught.value))
    assert (back.path, back.reason, back.fix) == (caught.value.path, caught.value.reason, caught.value.fix)
    assert str(back) == str(caught.value) == f"{back.path}: {back.reason}: {back.fix}"


def test_a_header_tells_what_the_file_holds(tmp_path):
    cases = {
        "a.png": (save(tmp_path / "a.png", GREY), ("PNG", "L", 8, 1)),
        "b.png": (save(tmp_path / "b.png", DEEP_GREY), ("PNG", "I;16", 16, 1)),
        "a.jpg": (save(tmp_path / "a.jpg", COLOUR), ("JPEG", "RGB", 8, 3)),
        "a.tif": (write_tiff(tmp_path / "a.tif", DEEP_COLOUR), ("TIFF", "RGB", 16, 3)),
        "b.tif": (write_tiff(tmp_path / "b.tif", GREY.astype(np.float64)), ("TIFF", "float64", 64, 1)),
    }
    for path, expected in cases.values():
        assert read_picture(path, None, Limits()).header == expected
    pages = write_tiff(tmp_path / "c.tif", GREY, GREY.astype(np.float32), COLOUR)
    found = [read_picture(pages, page, Limits()).header[1:] for page in (1, 2, 3)]
    assert found == [("L", 8, 1), ("float32", 32, 1), ("RGB", 8, 3)]


def hostile(files, seed):
    """One of the files, damaged: mostly its head, where sizes and offsets stand."""
    draw = random.Random(seed)
    data = bytearray(files[seed % len(files)])
    for _ in range(draw.choice([1, 1, 2, 3, 8, 30])):
        if len(data) < 9:
            break
        near = int(draw.expovariate(1 / 60))
        at = draw.choice([min(near, len(data) - 1), max(0, len(data) - 1 - near), draw.randrange(len(data))])
        kind = draw.random()
        if kind < 0.5:
            data[at] = draw.choice([data[at] ^ 1 << draw.randrange(8), 0, 1, 8, 16, 32, 127, 255])
        elif kind < 0.8:
            words = [2**32 - 1, 2**31 - 1, 0, 1, 2**24, 10_000]
            data[at : at + 4] = struct.pack(draw.choice("<>") + "I", draw.choice(words))
        elif kind < 0.9:
            del data[at : at + draw.choice([1, 4, 30, 300])]
        else:
            data[at:at] = data[: draw.choice([1, 4, 12, 60])]
    return bytes(data)


def test_a_damaged_file_gives_an_array_or_an_error_by_name_and_never_anything_else(tmp_path):
    """A few seconds of what was run for minutes, see docs/reading.md."""
    made = [
        save(tmp_path / "a.png", COLOUR),
        save(tmp_path / "p.png", GREY, "P"),
        save(tmp_path / "a.jpg", COLOUR),
        save(tmp_path / "a.bmp", GREY),
        save(tmp_path / "lzw.tif", COLOUR, compression="tiff_lzw"),
        save(tmp_path / "jpeg.tif", COLOUR, compression="jpeg"),
        save(tmp_path / "f.tif", GREY.astype(np.float32), compression="tiff_adobe_deflate"),
        write_tiff(tmp_path / "pages.tif", DEEP_GREY, DEEP_GREY),
        write_tiff(tmp_path / "deep.tif", DEEP_COLOUR, big=True),
        write_tiff(tmp_path / "f64.tif", GREY.astype(np.float64)),
    ]
    cv2.imwrite(str(tmp_path / "deep.png"), DEEP_COLOUR)
    made.append(tmp_path / "deep.png")
    files, outcomes = [path.read_bytes() for path in made], Counter()
    limits = Limits(max_pixels=10**6)
    for seed in range(1500):
        path = tmp_path / "hostile"
        path.write_bytes(hostile(files, seed))
        for decode in (
            lambda path: decode_image(path, 3, None, limits),
            lambda path: decode_image(path, 1, 2, limits),
            lambda path: decode_mask(path, None, limits),
        ):
            try:
                found = decode(path)
            except FileError as error:
                found = error
            if isinstance(found, FileError):
                assert str(found).startswith(f"{path}: found ")
                assert found.fix
            else:
                assert found.size <= 3 * 10**6
                assert found.dtype.kind != "f" or np.isfinite(found).all()
            outcomes[type(found)] += 1
    assert min(outcomes[np.ndarray], outcomes[FileError]) > 300


@pytest.mark.shared_data
def test_masks_of_real_images_are_instance_labels(shared_data):
    paths = sorted((shared_data / "dsb2018/masks").iterdir())[::60]
    for path in paths:
        mask = decode_mask(path)
        image = decode_image(shared_data / "dsb2018/images" / path.name, 3)
        assert mask.dtype == np.uint16
        assert mask.shape == image.shape[:2]
        assert image.dtype == np.uint8
