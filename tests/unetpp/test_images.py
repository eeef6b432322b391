"""Files to arrays: every pixel type that is read, and every file that is refused by name."""

import cv2
import numpy as np
import pytest
from PIL import Image

from unetpp.errors import UserError
from unetpp.images import convert, decode_image, decode_mask

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


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_images_keep_their_values_and_are_repeated_to_three_channels(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", GREY)
    assert np.array_equal(decode_image(path, 1), GREY[:, :, None])
    assert np.array_equal(decode_image(path, 3), np.stack([GREY] * 3, axis=2))


def test_alpha_is_dropped_from_colour_and_from_grey(tmp_path):
    alpha = RNG.integers(0, 256, (5, 7, 1), np.uint8)
    colour = save(tmp_path / "rgba.png", np.concatenate([COLOUR, alpha], axis=2))
    assert np.array_equal(decode_image(colour, 3), COLOUR)
    grey = tmp_path / "la.png"
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha[:, :, 0])]).save(grey)
    assert np.array_equal(decode_image(grey, 1)[:, :, 0], GREY)


def test_palette_images_give_their_colours(tmp_path):
    image = Image.fromarray(COLOUR).quantize(8)
    image.save(tmp_path / "p.png")
    assert np.array_equal(decode_image(tmp_path / "p.png", 3), np.asarray(image.convert("RGB")))


def test_one_bit_images_become_0_and_255(tmp_path):
    path = save(tmp_path / "a.png", GREY > 99)
    assert np.array_equal(decode_image(path, 1)[:, :, 0], np.where(GREY > 99, 255, 0))


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


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_stays_sixteen_bit(tmp_path, suffix):
    image = decode_image(save(tmp_path / f"a.{suffix}", DEEP_GREY), 3)
    assert image.dtype == np.uint16
    assert np.array_equal(image, np.stack([DEEP_GREY] * 3, axis=2))


def test_colour_becomes_grey_as_pillow_weights_it(tmp_path):
    grey = decode_image(save(tmp_path / "a.png", COLOUR), 1)[:, :, 0]
    assert np.abs(grey.astype(int) - np.asarray(Image.fromarray(COLOUR).convert("L"))).max() <= 1


@pytest.mark.parametrize("grey", [GREY, DEEP_GREY], ids=["8 bits", "16 bits"])
def test_grey_to_colour_and_back_changes_nothing(grey):
    assert np.array_equal(convert(convert(grey[:, :, None], 3), 1)[:, :, 0], grey)


def test_floating_point_images_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", GREY.astype(np.float32))
    for decode in (lambda: decode_image(path, 1), lambda: decode_mask(path)):
        with pytest.raises(UserError, match=r"a\.tif.*found.*expected"):
            decode()


def test_a_rotation_tag_is_refused_and_an_upright_one_is_not(tmp_path):
    exif = Image.Exif()
    for orientation, suffix in ((6, "jpg"), (3, "png"), (1, "jpg")):
        exif[274] = orientation
        path = save(tmp_path / f"a{orientation}.{suffix}", COLOUR, exif=exif)
        if orientation == 1:
            assert decode_image(path, 3).shape == (5, 7, 3)
        else:
            with pytest.raises(UserError, match=f"orientation tag {orientation}.*expected upright"):
                decode_image(path, 3)


def test_a_stack_of_pages_is_refused(tmp_path):
    page = Image.fromarray(GREY)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    with pytest.raises(UserError, match="found 3 pages; expected one"):
        decode_image(tmp_path / "a.tif", 1)


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


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"a\.png: found too many pixels"):
        decode_image(path, 3)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_masks_keep_their_values(tmp_path, suffix):
    assert np.array_equal(decode_mask(save(tmp_path / f"a.{suffix}", LABELS)), LABELS)


@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32)])
def test_masks_of_16_and_32_bits_keep_large_labels(tmp_path, suffix, dtype):
    mask = decode_mask(save(tmp_path / f"a.{suffix}", LABELS.astype(dtype) * 20000))
    assert np.array_equal(mask, LABELS.astype(int) * 20000)


def test_negative_masks_are_refused(tmp_path):
    with pytest.raises(UserError, match="mask value -3"):
        decode_mask(save(tmp_path / "a.tif", np.full((5, 7), -3, np.int32)))


def test_one_bit_masks_are_0_and_1(tmp_path):
    assert np.array_equal(decode_mask(save(tmp_path / "a.png", LABELS > 1)), LABELS > 1)


def test_palette_masks_give_the_index_and_not_the_colour(tmp_path):
    image = Image.fromarray(LABELS, mode=None).convert("P")
    image.putdata(LABELS.ravel().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    image.save(tmp_path / "a.png")
    assert np.array_equal(decode_mask(tmp_path / "a.png"), LABELS)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_masks_of_2_and_4_bits_keep_the_stored_class(tmp_path, bits):
    # Pillow writes no such grey file; a palette file of these bits becomes one by its colour type alone.
    path = tmp_path / "a.png"
    packed = {2: [0b00011011, 0b11100100], 4: [0x01, 0x2F, 0xA0, 0x37]}[bits]
    width = len(packed) * 8 // bits
    path.write_bytes(png(width, 1, bits, bytes([0, *packed])))
    expected = [(byte >> shift) % 2**bits for byte in packed for shift in range(8 - bits, -1, -bits)]
    assert decode_mask(path).tolist() == [expected]


def png(width, height, bits, rows):
    """A grey PNG made by hand."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colour_masks_with_equal_channels_are_read_and_others_are_refused(tmp_path):
    equal = np.stack([LABELS] * 3, axis=2)
    assert np.array_equal(decode_mask(save(tmp_path / "a.png", equal)), LABELS)
    opaque = np.concatenate([equal, np.full((5, 7, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(decode_mask(save(tmp_path / "b.png", opaque)), LABELS)
    cv2.imwrite(str(tmp_path / "c.png"), equal.astype(np.uint16) * 9999)
    assert np.array_equal(decode_mask(tmp_path / "c.png"), LABELS.astype(int) * 9999)
    with pytest.raises(UserError, match=r"d\.png: found a mask in colours"):
        decode_mask(save(tmp_path / "d.png", COLOUR))


def test_masks_with_transparent_parts_are_refused(tmp_path):
    hidden = np.concatenate([np.zeros((5, 7, 3), np.uint8), LABELS[:, :, None] * 60], axis=2)
    with pytest.raises(UserError, match=r"a\.png: found a mask with transparent parts"):
        decode_mask(save(tmp_path / "a.png", hidden))


def test_jpeg_masks_are_refused_whatever_their_suffix(tmp_path):
    with pytest.raises(UserError, match=r"a\.png: found a JPEG mask.*export"):
        decode_mask(save(tmp_path / "a.png", LABELS, format="JPEG"))


@pytest.mark.shared_data
def test_masks_of_real_images_are_instance_labels(shared_data):
    paths = sorted((shared_data / "dsb2018/masks").iterdir())[::60]
    for path in paths:
        mask = decode_mask(path)
        image = decode_image(shared_data / "dsb2018/images" / path.name, 3)
        assert mask.dtype == np.uint16
        assert mask.shape == image.shape[:2]
        assert image.dtype == np.uint8
