"""Images of 1 to 16 channels: read as the file has them, or refused with how many it has."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetpp.data.warp import warp
from unetpp.errors import FileError
from unetpp.images.decode import decode_image, decode_mask
from unetpp.images.display import display
from unetpp.images.pixels import resize, shown

RNG = np.random.default_rng(0)


def bands(channels: int, dtype="u2") -> np.ndarray:
    return RNG.integers(0, 200, (30, 40, channels)).astype(dtype)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("channels", [2, 4, 5, 16])
def test_samples_of_a_tiff_are_channels(tmp_path, channels, planes):
    image = bands(channels)
    data = image if planes == "contig" else np.moveaxis(image, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", planarconfig=planes)
    assert np.array_equal(decode_image(tmp_path / "a.tif", channels), image)
    for wanted in {1, 3, channels + 1}:
        message = f"found {channels} channels; expected {wanted}.*set prepare.channels to {channels}"
        with pytest.raises(FileError, match=message):
            decode_image(tmp_path / "a.tif", wanted)
    with pytest.raises(FileError, match=f"found a mask of {channels} channels; expected one"):
        decode_mask(tmp_path / "a.tif")


def test_alpha_is_no_channel_and_neither_is_a_conversion_made_but_of_grey_and_rgb(tmp_path):
    Image.fromarray(bands(2, "u1")).save(tmp_path / "grey.png")
    Image.fromarray(bands(4, "u1")).save(tmp_path / "rgb.png")
    tifffile.imwrite(tmp_path / "rgb.tif", bands(4, "u1"), photometric="rgb", extrasamples=["unassalpha"])
    for name, found, wanted in (
        ("grey.png", "1 channel", 2),
        ("rgb.png", "3 channels", 4),
        ("rgb.tif", "3 channels", 4),
    ):
        with pytest.raises(FileError, match=f"found {found} and alpha, which does not count; expected {wanted}"):
            decode_image(tmp_path / name, wanted)
        assert decode_image(tmp_path / name, 3).shape == (30, 40, 3)
    tifffile.imwrite(tmp_path / "nir.tif", bands(4, "u1"), photometric="rgb", extrasamples=["unspecified"])
    assert decode_image(tmp_path / "nir.tif", 4).shape == (30, 40, 4)


def test_pages_are_channels_where_the_file_says_so_and_nowhere_else(tmp_path):
    image = bands(5)
    pages = np.moveaxis(image, 2, 0)
    tifffile.imwrite(tmp_path / "shaped.tif", pages, photometric="minisblack", metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "imagej.tif", pages, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "a.ome.tif", pages, photometric="minisblack", metadata={"axes": "CYX"})
    for name in ("shaped.tif", "imagej.tif", "a.ome.tif"):
        assert np.array_equal(decode_image(tmp_path / name, 5), image), name
        with pytest.raises(FileError, match="found 5 channels; expected 3"):
            decode_image(tmp_path / name, 3)
    tifffile.imwrite(tmp_path / "plain.tif", pages, photometric="minisblack", metadata=None)
    tifffile.imwrite(tmp_path / "stack.tif", pages, imagej=True, metadata={"axes": "ZYX"})
    for name in ("plain.tif", "stack.tif"):
        with pytest.raises(FileError, match="found 5 pages; expected one"):
            decode_image(tmp_path / name, 5)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("channels", [2, 5, 16])
def test_any_number_of_channels_is_resized_turned_and_shown_as_each_is_alone(channels, dtype):
    image, mask = bands(channels, dtype), np.zeros((30, 40), np.uint8)
    for size in ((12, 50), (7, 9), (64, 64)):
        alone = [resize(image[..., at], size) for at in range(channels)]
        # OpenCV rounds as many channels as it likes in one way.
        assert np.allclose(resize(image, size), np.stack(alone, axis=2), rtol=1e-5, atol=dtype != "f4")
    turned = [warp(image[..., at : at + 1], mask, 0.3, 1.2)[0] for at in range(channels)]
    assert np.allclose(warp(image, mask, 0.3, 1.2)[0], np.concatenate(turned, axis=2), atol=12)  # of 2 more coarsely
    assert display(image).shape == shown(image).shape == (30, 40, 3)
    assert np.array_equal(shown(image), image[..., :3] if channels > 2 else image[..., [0, 0, 0]])
