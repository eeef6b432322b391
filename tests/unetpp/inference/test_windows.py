"""Laws of images larger than memory: strips are the whole, whatever the file, and memory does not follow the height."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile

from tests.unetpp.inference.test_tiles import engine, segmenter
from unetpp.data.scaling import find_limits, measure_parts, scaled
from unetpp.engines.runtimes import ExportEngine
from unetpp.errors import FileError
from unetpp.images.decode import decode_image
from unetpp.images.frame import Frame
from unetpp.images.windows import open_windows
from unetpp.inference import windows
from unetpp.inference.tiles import as_batch, fits, predict_image, to_mask, to_own_size
from unetpp.inference.windows import predict_strips
from unetpp.models.about import About
from unetpp.network.pruning import prune

SIZE = (431, 290)


def picture(channels, dtype, size=SIZE):
    """An image that is darker on one side and below, so that a part's own mean and range are not the whole's."""
    noise = np.random.default_rng(0).random((*size, channels))
    noise *= np.linspace(0.2, 1, size[1])[:, None] * np.linspace(1, 0.3, size[0])[:, None, None]
    return (noise * {"u1": 255, "u2": 60000, "f4": 7}[dtype] + (dtype == "f4") * 1000).astype(dtype)


def written(path, image):
    """It as a TIFF in tiles."""
    planes, kind = "contig" if image.shape[2] > 1 else None, "rgb" if image.shape[2] == 3 else "minisblack"
    tifffile.imwrite(path, image, tile=(64, 96), compression="zlib", photometric=kind, planarconfig=planes)
    return path


def joined(strips, size=SIZE):
    """Strips as one, after they were seen to follow one another."""
    rows = []
    for top, probs in strips:
        assert top == sum(one.shape[1] for one in rows)
        rows.append(probs)
    assert sum(one.shape[1] for one in rows) == size[0]
    return np.concatenate(rows, axis=1)


def whole(one, image):
    """What the network says of an image that is not cut."""
    frame = one.about.frame
    return to_own_size(one(as_batch([image], frame)), image.shape[:2])[0]


@pytest.mark.parametrize(("channels", "dtype"), [(1, "u1"), (3, "u1"), (3, "u2"), (3, "f4"), (5, "u2")])
def test_strips_are_the_whole(tmp_path, channels, dtype):
    one = engine(segmenter((4, 6), in_channels=channels, upsampling="bilinear", num_classes=3))
    path = written(tmp_path / "a.tif", picture(channels, dtype))
    with open_windows(path, channels) as image:
        found = joined(predict_strips(one, image, 100))
    expected = whole(one, decode_image(path, channels))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.array_equal(to_mask(found[None], 1), to_mask(expected[None], 1))


@pytest.mark.parametrize(("of_file", "of_network"), [(1, 3), (3, 1)])
def test_grey_and_colour_are_converted_by_windows(tmp_path, of_file, of_network):
    one = engine(segmenter((4, 6), in_channels=of_network, upsampling="transposed"))
    path = written(tmp_path / "a.tif", picture(of_file, "u1"))
    with open_windows(path, of_network) as image:
        found = joined(predict_strips(one, image, 100))
    np.testing.assert_allclose(found, whole(one, decode_image(path, of_network)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("frame", [Frame((48, 32)), Frame((200, 180)), Frame((96, 128), "pad")])
def test_images_that_training_resized_are_resized_by_windows(tmp_path, frame, dtype):
    one = engine(segmenter((4, 6), upsampling="bilinear"), frame)
    path = written(tmp_path / "a.tif", picture(3, dtype))
    with open_windows(path, 3) as image:
        found = joined(predict_strips(one, image))
    by_area = frame.size != (200, 180)  # where numpy and OpenCV differ by a level
    atol = 1e-6 if dtype == "u1" and not by_area else 0.02
    np.testing.assert_allclose(found, predict_image(one, decode_image(path, 3)), atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_statistics_of_parts_are_those_of_the_scaled_whole(dtype):
    image = picture(3, dtype)
    limits, statistics = measure_parts([image[:7], image[7:300], image[300:]])
    seen = scaled(image).astype(np.float64)
    assert limits == find_limits(image)
    np.testing.assert_allclose(statistics[0, :, 0], seen.mean((0, 1)), atol=2e-7, rtol=0)
    np.testing.assert_allclose(statistics[0, :, 1], seen.std((0, 1)), atol=2e-7, rtol=0)
    assert statistics.dtype == np.float32


def test_sums_of_bright_images_of_16_bits_do_not_overflow():
    _, statistics = measure_parts([np.full((2**11, 2**11, 1), 65535, np.uint16)] * 3)
    assert statistics.tolist() == [[[1, 0]]]


def test_an_image_of_one_value_has_no_contrast():
    limits, statistics = measure_parts([np.full((9, 9, 2), 7, np.float32)])
    assert (limits, statistics.tolist()) == ((7, 7), [[[0, 0], [0, 0]]])


def test_what_takes_no_parts_gets_the_whole_up_to_a_size(tmp_path, monkeypatch):
    one = engine(segmenter((4, 6), upsampling="bilinear"))
    one.takes_parts = False
    with open_windows(written(tmp_path / "a.tif", picture(3, "u1")), 3) as image:
        assert len(list(predict_strips(one, image, 100))) == 1
        monkeypatch.setattr(windows, "WHOLE_PX", 1000)
        with pytest.raises(FileError, match=r"a\.tif: found 290x431 px.* torch .*at most 1000 pixels: use --engine"):
            list(predict_strips(one, image, 100))


def test_tiles_have_the_size_that_costs_least_and_small_images_are_whole():
    deep = segmenter((4, 6, 8, 10, 12))
    sides = [windows.tile_sides(engine(segmenter_of(deep, depth)))[0] for depth in (1, 2, 3, 4)]
    assert sides == [256, 608, 608, 1024]
    about = About({"widths": [32, 64, 128, 256, 512]}, None)
    for name, side in (("torch", 656), ("onnxruntime", 608), ("openvino-int8, flips", 1024)):  # as memory allows
        assert windows.tile_sides(ExportEngine(Path(), name, about, Mock(), True))[0] == side
    assert fits(engine(deep), (1024, 1000))
    assert not fits(engine(deep), (1025, 10))
    wide = windows._lower(engine(segmenter((4, 6), num_classes=200)), 20_000)
    assert wide < sides[0]


def segmenter_of(one, depth):
    return type(one)(prune(one.network, depth))


PEAK = """
import sys
from pathlib import Path
import numpy as np
from unetpp.images.row_writers import tiff_rows
from unetpp.images.windows import open_windows
from unetpp.inference.tiles import to_mask
from unetpp.inference.windows import predict_strips
from unetpp.models.about import About
import imagecodecs, tifffile

class Engine:
    name, takes_parts, about = "half", True, About({"widths": list(map(int, sys.argv[3:])), "num_classes": 1}, None)
    def __call__(self, images, statistics=None):
        return images[:, :1] / 2

def peak_mib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

before = peak_mib()
with open_windows(sys.argv[1], 3) as image:
    with tiff_rows(Path(sys.argv[2]), image.shape[:2], np.dtype("u1"), image.tags) as write:
        for _, probs in predict_strips(Engine(), image):
            write(to_mask(probs[None], 1)[0])
print(peak_mib() - before)
"""


@pytest.mark.parametrize("widths", [(4, 6), (32, 64, 128, 256, 512)])
def test_memory_does_not_grow_with_the_image(tmp_path, widths):
    """6000 x 6000: 412 MiB as float32, 103 MiB in the file's own numbers; held are some rows of it."""
    tile = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    tiles = (tile for _ in range(12 * 12))
    tifffile.imwrite(
        tmp_path / "a.tif", tiles, shape=(6000, 6000, 3), dtype=np.uint8, tile=(512, 512), photometric="rgb"
    )
    script = [sys.executable, "-c", PEAK, tmp_path / "a.tif", tmp_path / "b.tif", *map(str, widths)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages.first.shape == (6000, 6000)
