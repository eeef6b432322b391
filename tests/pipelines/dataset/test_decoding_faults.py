"""The table of faults of single files: each is named with its fix, or read by a policy that docs/reading.md tells."""

import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.pipelines.dataset.faulty_sets import SIDE, Faults, FaultySet, block, check, grey, noise, with_params
from tests.unetpp.images.pngs import png, png_chunk
from tests.unetpp.images.tiffs import write_tiff

fault = Faults()


@fault("quarantine", r"^masks/odd\.png: found a mask in colours; .*: name the colours in prepare\.values")
def mask_in_colours(faulty):
    colours = np.zeros((SIDE, SIDE, 3), np.uint8)
    colours[4:9], colours[9:15] = (255, 0, 0), (0, 255, 0)
    faulty.mask("odd.png", colours)


@fault("policy", "alpha is dropped")
def image_with_alpha(faulty):
    faulty.image("odd.png", noise("odd", 4))
    faulty.expect(noise("odd", 4)[:, :, :3], block())


@fault("policy", "alpha is dropped", nightly=True)
def grey_image_with_alpha(faulty):
    pixels = noise("odd", 2)
    faulty.image("odd.png", pixels)
    faulty.expect(grey(pixels[:, :, 0]), block())


@fault("policy", "replaced by its colours")
def image_with_a_palette_and_alpha(faulty):
    indices = noise("odd", 1) % 4
    colours = np.array([[0, 0, 0], [250, 10, 9], [3, 255, 0], [9, 9, 9]], np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette(colours.ravel().tolist())
    picture.save(faulty.source / "images/odd.png", transparency=bytes([0, 100, 200, 255]))
    faulty.expect(colours[indices], block())


@fault("policy", "the index, not the colour", nightly=True)
def mask_with_a_palette_and_alpha(faulty):
    faulty.good(num_classes=3)
    picture = Image.fromarray(block(2)).convert("P")
    picture.putdata(block(2).ravel().tolist())
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(faulty.source / "masks/odd.png", transparency=bytes([0, 100, 200]))
    faulty.expect(noise("odd"), block(2))
    return with_params(num_classes=3)


@fault(
    "quarantine",
    r"^masks/odd\.png: found a palette mask whose index 0 is the colour \(255, 255, 255\).*: save it as",
    nightly=True,
)
def mask_with_a_palette_that_begins_with_white(faulty):
    picture = Image.fromarray(1 - block())
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(faulty.source / "masks/odd.png")


@fault("policy", "`prepare.mask_threshold=128` takes the values from 128 on")
def mask_with_grey_rims(faulty):
    rims = np.asarray(Image.fromarray(block(255)).filter(ImageFilter.GaussianBlur(1)))
    faulty.mask("odd.png", rims)
    faulty.expect(noise("odd"), (rims >= 128).astype(np.uint8))
    for number in range(40):
        faulty.mask(f"{number:04}.png", block(255))
    return with_params(mask_threshold=128)


@fault("policy", "three channels tagged as grey", nightly=True)
def image_of_three_stains(faulty):
    path = faulty.replace_image("odd.tif", noise("odd"))
    write_tiff(path, noise("odd"), tags={262: 1})
    faulty.expect(noise("odd"), block())


@fault("policy", "8 or 16 bits per channel")
def image_of_16_bits(faulty):
    pixels = noise("odd", 1, np.uint16)
    faulty.image("odd.png", pixels)
    faulty.expect(grey(pixels), block())


@fault("policy", "its minimum and maximum are its range")
def image_of_floats(faulty):
    pixels = noise("odd", 1, np.float32) / 64 - 100
    faulty.replace_image("odd.tif", pixels)
    faulty.expect(grey(pixels), block())


@fault("quarantine", r"^images/odd\.tif: found 1 of 576 values that are NaN, infinite .*: replace them")
def image_of_floats_with_a_hole(faulty):
    pixels = noise("odd", 1, np.float32)
    pixels[3, 4] = np.nan
    faulty.replace_image("odd.tif", pixels)


@fault("quarantine", r"^images/odd\.png: found the orientation tag 6.*: rotate the pixels themselves")
def image_with_exif_6(faulty):
    exif = Image.Exif()
    exif[274] = 6
    faulty.image("odd.png", noise("odd"), exif=exif)


@fault("quarantine", r"^masks/odd\.png: found the orientation tag 6.*in image and mask alike", nightly=True)
def mask_with_exif_6(faulty):
    exif = Image.Exif()
    exif[274] = 6
    faulty.mask("odd.png", block(), exif=exif)


@fault("policy", "grey is repeated")
def grey_and_colour_mixed(faulty):
    faulty.image("odd.png", noise("odd", 1))
    faulty.expect(grey(noise("odd", 1)), block())
    faulty.expect(noise("0003"), block(), id="0003")


@fault("quarantine", r"^masks/odd\.jpg: found a JPEG mask, whose values were changed by compression.*: export")
def jpeg_mask(faulty):
    faulty.replace_mask("odd.jpg", block(255))


@fault("quarantine", r"^images/odd\.png: found a broken file .*: fetch it again or remove it")
def truncated_image(faulty):
    path = faulty.source / "images/odd.png"
    path.write_bytes(path.read_bytes()[:-500])


@fault("quarantine", r"^masks/odd\.tif: found a broken file .*: fetch it again or remove it", nightly=True)
def truncated_mask(faulty):
    path = faulty.replace_mask("odd.tif", block())
    path.write_bytes(path.read_bytes()[:-500])


@fault("quarantine", r"^images/odd\.png: found an empty file \(0 bytes\); .*: fetch it again or remove it")
def zero_byte_image(faulty):
    (faulty.source / "images/odd.png").write_bytes(b"")


@fault("quarantine", r"^masks/odd\.png: found an empty file \(0 bytes\)", nightly=True)
def zero_byte_mask(faulty):
    (faulty.source / "masks/odd.png").write_bytes(b"")


@fault("quarantine", r"^images/odd\.png: found no image but a file that begins with b'I am text'.*: save it as one")
def text_named_png(faulty):
    (faulty.source / "images/odd.png").write_text("I am text")


@fault(
    "quarantine",
    r"^images/odd\.png: found too many pixels \(50000x50000 px\).*: cut it into tiles",
)
def png_of_50000_by_50000(faulty):
    (faulty.source / "images/odd.png").write_bytes(png(50_000, 50_000, 8, bytes(10**6)))


@fault("quarantine", r"^images/odd\.tif: found too many pixels \(4000000000x4000000000 px\)", nightly=True)
def tiff_that_declares_more_than_there_is_memory(faulty):
    path = faulty.replace_image("odd.tif", noise("odd"))
    write_tiff(path, noise("odd"), tags={256: 4 * 10**9, 257: 4 * 10**9})


@fault("quarantine", r"^images/odd\.png: found 2 MiB; expected at most prepare\.max_file_mib = 1")
def file_that_is_too_large(faulty):
    path = faulty.source / "images/odd.png"
    path.write_bytes(path.read_bytes() + bytes(2**21))
    return with_params(max_file_mib=1)


@fault("quarantine", r"^images/odd\.png: found a broken file \(Decompressed data too large")
def bomb_inside_a_png(faulty):
    path = faulty.source / "images/odd.png"
    whole = path.read_bytes()
    bomb = png_chunk(b"zTXt", b"name\0\0" + zlib.compress(bytes(2**26)))
    path.write_bytes(whole[:33] + bomb + whole[33:])


@pytest.mark.parametrize(("make", "outcome", "message"), fault.rows)
def test_a_fault_of_a_file_is_named_or_read_by_policy(make, outcome, message, tmp_path, monkeypatch):
    check(make, outcome, message, FaultySet(tmp_path, monkeypatch))
