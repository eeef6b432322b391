"""Large images through the command: the files of the whole, by strips, and where the image lies."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pipelines.cli import build_parser
from pipelines.prediction import outputs
from unetpp import NestedUNet, UserError
from unetpp.models.model_file import Trained

SCALE = (33550, 12, 3, (0.5, 0.5, 0.0), True)
SIZE = (1100, 300)
KINDS = ["mask", "probs", "probs8"]


@pytest.fixture
def predict(tmp_path, monkeypatch):
    """The command on the images of a folder, by strips or as a whole: what it wrote, by name."""
    torch.manual_seed(0)
    network = NestedUNet((2, 3), num_classes=3)
    network.get_parameter("heads.1.weight").data *= 50  # so that its answers differ
    Trained(network.eval(), None).save(tmp_path / "model.safetensors")
    monkeypatch.setattr(outputs, "SMALL_BYTES", 0)

    def run(image, out, large, *options):
        monkeypatch.setattr(outputs, "WHOLE_PX", 1000 if large else 2**25)
        command = ["predict", str(image), "--model", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / out)]
        arguments = build_parser().parse_args([*command, "--engine", "torch", *options])
        arguments.run(arguments)
        return {path.relative_to(tmp_path / out).as_posix(): path for path in (tmp_path / out).rglob("[!.]*.*")}

    return run


def picture():
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)) * np.linspace(0.2, 1, SIZE[1])[:, None]
    return noise.astype(np.uint8)


def read_png(path):
    return np.asarray(Image.open(path))


def test_a_large_tiff_gives_tiffs_that_lie_where_it_lies(tmp_path, predict):
    tifffile.imwrite(tmp_path / "a.tif", picture(), tile=(64, 64), compression="zlib", extratags=[SCALE])
    save = ["--save", *KINDS]
    whole, large = (predict(tmp_path / "a.tif", name, name == "large", *save) for name in ("whole", "large"))
    names = ["probs8/background/a", "probs8/1/a", "probs8/2/a"]
    assert set(large) == {f"{name}.tif" for name in ["a", "probs/a", *names]}
    for name in ["a", *names]:
        with tifffile.TiffFile(large[f"{name}.tif"]) as file:
            assert file.pages.first.tags.valueof(33550) == SCALE[3]
            assert np.array_equal(file.asarray(), np.asarray(Image.open(whole[f"{name}.png"]))), name
    assert len(np.unique(np.asarray(Image.open(whole["a.png"])))) > 1
    probs = np.moveaxis(tifffile.imread(large["probs/a.tif"]), 2, 0)
    assert np.array_equal(probs, np.load(whole["probs/a.npy"]))
    before = large["a.tif"].stat().st_mtime_ns
    assert predict(tmp_path / "a.tif", "large", True, *save)["a.tif"].stat().st_mtime_ns == before  # it is done


def test_of_a_large_png_the_files_are_those_of_the_whole(tmp_path, predict):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    whole, large = (predict(tmp_path / "a.png", name, name == "large", "--save", *KINDS) for name in ("whole", "large"))
    assert set(whole) == set(large)
    for name, path in large.items():
        read = np.load if name.endswith(".npy") else lambda path: np.asarray(Image.open(path))
        assert np.array_equal(read(path), read(whole[name])), name


def test_the_limit_is_for_what_is_decoded_at_once(tmp_path, predict):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", picture(), tile=(64, 64), compression="zlib")
    assert "b.tif" in predict(tmp_path / "b.tif", "out", True, "--max-pixels", "70000")
    with pytest.raises(UserError, match=r"a\.png: found too many pixels .*at most --max-pixels = 70000"):
        predict(tmp_path / "a.png", "out", True, "--max-pixels", "70000")


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_overlays_objects_and_measures_of_strips_are_those_of_the_whole(tmp_path, predict, name):
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, picture(), tile=(64, 64), compression="zlib")
    else:
        Image.fromarray(picture()).save(tmp_path / name)
    save = ["--save", "overlay", "labels", "measurements"]
    whole, large = (predict(tmp_path / name, folder, folder == "large", *save) for folder in ("whole", "large"))
    suffix = name[1:]
    assert set(large) == {f"overlay/a{suffix}", f"labels/a{suffix}", *(one for one in whole if one.endswith("csv"))}
    read = tifffile.imread if suffix == ".tif" else read_png
    for kind in ("overlay", "labels"):
        assert np.array_equal(read(large[f"{kind}/a{suffix}"]), read_png(whole[f"{kind}/a.png"])), kind
    assert read(large[f"labels/a{suffix}"]).max() > 100
    for one in (one for one in whole if one.endswith("csv")):
        assert large[one].read_bytes() == whole[one].read_bytes()


def test_a_broken_large_image_leaves_no_file(tmp_path, predict):
    tifffile.imwrite(tmp_path / "a.tif", picture(), tile=(64, 64), compression="zlib")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[-9000:-8000] = bytes(1000)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif: found a broken file"):
        predict(tmp_path / "a.tif", "out", True)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != ".unetpp"]
