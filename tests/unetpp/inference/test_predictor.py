"""Laws of `Predictor`, and of `import unetpp` itself."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import unetpp
from tests.conftest import REPOSITORY
from tests.unetpp.network.classic import with_lived_in_norms
from unetpp import NestedUNet, Predictor, Segmenter, Trained, UserError
from unetpp.data.scaling import scale

RNG = np.random.default_rng(0)


def make(in_channels: int = 3, size: int | None = None, **options) -> Trained:
    torch.manual_seed(0)
    network = with_lived_in_norms(NestedUNet((4, 6, 8), in_channels, **options))
    return Trained(network, size, {})


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_it_gives_what_the_segmenter_gives(depth, dtype):
    trained = make(num_classes=3)
    batch = (RNG.random((2, 37, 30, 3)) * 200).astype(dtype)
    segmenter = trained.segmenter(depth)
    with torch.inference_mode():
        expected = segmenter(torch.stack([scale(image) for image in batch]))
    predictor = Predictor(trained, depth)
    probs = predictor(batch)
    assert isinstance(probs, np.ndarray)
    np.testing.assert_array_equal(probs, expected.numpy())
    np.testing.assert_allclose(predictor.probs(batch[1]), probs[1], atol=1e-6)  # a batch rounds as it will
    np.testing.assert_array_equal(predictor.mask(batch), probs.argmax(axis=1))
    np.testing.assert_array_equal(predictor.mask(batch[0]), predictor.probs(batch[0]).argmax(axis=0))


def test_tensors_are_taken_as_they_are():
    trained, batch = make(), torch.rand(2, 3, 16, 20, requires_grad=True)
    with torch.inference_mode():
        expected = trained.segmenter()(batch).numpy()
    np.testing.assert_allclose(Predictor(trained)(batch), expected, atol=1e-6)
    np.testing.assert_allclose(Predictor(trained)(batch[1]), expected[1], atol=1e-6)


def test_a_network_is_used_in_eval_mode_and_stays_in_its_own():
    network = make().network.train()
    image = RNG.integers(0, 256, (16, 16, 3), np.uint8)
    with torch.inference_mode():
        expected = Segmenter(network.eval())(scale(image)[None])[0].numpy()
    network.train()
    np.testing.assert_array_equal(Predictor(network)(image), expected)
    assert network.training


def test_heads_are_averaged():
    trained, image = make(), RNG.integers(0, 256, (16, 16, 3), np.uint8)
    each = [Predictor(trained, depth)(image) for depth in (1, 2)]
    np.testing.assert_allclose(Predictor(trained, heads="mean")(image), np.mean(each, axis=0), atol=1e-6)
    np.testing.assert_allclose(
        Predictor(trained, heads={1: 1, 2: 3})(image), 0.25 * each[0] + 0.75 * each[1], atol=1e-6
    )


@pytest.mark.parametrize(
    "as_stored",
    [
        lambda grey: grey.astype(np.int64),
        lambda grey: grey.astype(np.float64) * 1000 - 5,
        lambda grey: grey.astype(np.float16),
        lambda grey: grey[:, :, None],
        lambda grey: np.repeat(grey[:, :, None], 3, axis=2),
    ],
    ids=["int64", "float64", "float16", "one channel", "three channels"],
)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_what_holds_the_same_picture_gives_the_same_mask(as_stored, in_channels):
    grey = RNG.integers(0, 256, (20, 28), np.uint8)
    grey[0, :2] = 0, 255  # so that the range of the values is that of the type
    predictor = Predictor(make(in_channels))
    np.testing.assert_allclose(predictor(as_stored(grey)), predictor(grey), atol=1e-4)


def test_the_order_of_bytes_and_an_old_kind_of_array_change_nothing():
    dark = RNG.integers(0, 900, (20, 28), np.uint16)  # by the range of the type, not by its own
    predictor = Predictor(make(1, size=16))
    np.testing.assert_array_equal(predictor(dark.astype(">u2")), predictor(dark))
    np.testing.assert_array_equal(predictor(dark.view(np.matrix)), predictor(dark))


def test_bool_is_black_and_white():
    image = RNG.random((16, 16)) > 0.5
    predictor = Predictor(make(1))
    np.testing.assert_array_equal(predictor(image), predictor(image.astype(np.uint8) * 255))


@pytest.mark.parametrize("side", [31, 150])
def test_images_are_resized_where_training_resized_them(side):
    """Of arrays and tensors alike, and the answer has the image's own size."""
    image = RNG.integers(0, 256, (side, 40, 3), np.uint8)
    predictor = Predictor(make(size=16))
    probs = predictor(image)
    assert probs.shape == (1, side, 40)
    tensor = torch.from_numpy(image).permute(2, 0, 1) / 255
    np.testing.assert_allclose(predictor(tensor), probs, atol=0.05)  # uint8 is rounded after it was resized


def test_labels_are_bits():
    predictor = Predictor(make(num_classes=2, multilabel=True))
    image = RNG.integers(0, 256, (16, 16, 3), np.uint8)
    first, second = predictor(image) >= 0.5
    np.testing.assert_array_equal(predictor.mask(image), first + 2 * second)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.zeros((8, 8, 3), np.uint8)], "type list; expected a numpy array or a tensor"),
        (np.zeros(8, np.uint8), r"shape \(8,\); expected \(H, W\), \(H, W, C\) or \(N, H, W, C\)"),
        (np.zeros((0, 8, 3), np.uint8), "without sides of 0"),
        (np.zeros((8, 8, 4), np.uint8), r"4 channels; expected 3 \(RGB\) or 1 \(grey\).*drops alpha"),
        (np.zeros((3, 8, 9), np.uint8), r"9 channels; .* np\.moveaxis"),
        (np.zeros((8, 8, 3), complex), "complex128; expected whole numbers, floats or bool"),
        (np.ma.masked_array(np.ones((8, 8)), np.eye(8, dtype=bool)), r"masked array; .* images\.filled\(VALUE\)"),
        (np.full((8, 8, 3), np.nan), "192 of 192 values that are NaN"),
        (torch.rand(8, 8, 3), r"tensor of shape \(8, 8, 3\).*permute\(2, 0, 1\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"torch\.uint8; expected floats in \[0, 1\]: divide"),
        (torch.full((3, 8, 8), 255.0), "values from 255 to 255"),
        (torch.full((3, 8, 8), torch.nan), "values from nan to nan"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_do(images, message):
    with pytest.raises(UserError, match=message):
        Predictor(make())(images)


def test_what_is_no_model_or_no_choice_of_heads_is_refused():
    with pytest.raises(UserError, match=r"type str; expected what unetpp\.load"):
        Predictor("models/train")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="pass only one of them"):
        Predictor(make(), 1, heads="mean")
    with pytest.raises(UserError, match="cannot prune to depth 3"):
        Predictor(make(), 3)


def test_models_say_what_they_are_in_a_line():
    trained = make(size=96, num_classes=3)
    assert repr(trained) == "Trained(L1, L2, widths 4 6 8, 3 channels, classes 1, 2, 96 px)"
    assert repr(Predictor(trained, 1)) == "Predictor(L1, widths 4 6, 3 channels, classes 1, 2, 96 px)"


def test_load_takes_every_form_of_a_trained_model(tmp_path):
    trained, image = make(), RNG.integers(0, 256, (16, 16, 3), np.uint8)
    trained.save(tmp_path / "model.safetensors")
    (tmp_path / "L2").mkdir()
    trained.folded(2).save(tmp_path / "L2/model.safetensors")
    expected = Predictor(trained, 2)(image)
    for path in ("", "model.safetensors", "L2", "L2/model.safetensors"):
        np.testing.assert_allclose(Predictor(unetpp.load(tmp_path / path), 2)(image), expected, atol=1e-5)
    for name, message in (
        ("none", r"none: no such model"),
        ("L2/model.onnx", "an exported graph, which is not a trained model"),
        ("other/model.safetensors", "no such model"),
        ("s3:/bucket/model.safetensors", "no installed package reads s3:/"),
    ):
        with pytest.raises(UserError, match=message):
            unetpp.load(name if ":" in name else tmp_path / name)


def test_public_names_are_there_and_shown():
    assert set(unetpp.__all__) <= set(dir(unetpp))
    assert all(getattr(unetpp, name) for name in unetpp.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", unetpp.__version__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unetpp.nothing


def test_importing_and_predicting_change_nothing_for_the_host():
    code = (
        "import os, sys, numpy, torch\n"
        "environment, modules = dict(os.environ), dict(sys.modules)\n"
        "import unetpp\n"
        "for name in unetpp.__all__:\n"
        "    if name != 'load':\n"
        "        getattr(unetpp, name)\n"
        "image = numpy.zeros((20, 30, 3), numpy.uint8)\n"
        "unetpp.Predictor(unetpp.NestedUNet((4, 6, 8)), depth=1).mask(image)\n"
        "assert dict(os.environ) == environment\n"
        "assert all(sys.modules[name] is module for name, module in modules.items())\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - set(modules)}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert set(eval(done.stdout)) <= {"unetpp", "torch", "numpy"}


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    text = Path(REPOSITORY, "README.md").read_text()
    examples = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "unetpp.Predictor" in code]
    assert len(examples) == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/train").mkdir(parents=True)
    make().save(tmp_path / "models/train/model.safetensors")
    names = {"image": RNG.integers(0, 256, (33, 40, 3), np.uint8), "images": torch.rand(1, 3, 32, 32)}
    names |= {"masks": np.eye(32, dtype=np.uint8)[None], "val_images": names["images"]}
    exec(examples[0].replace("epochs=20", "epochs=1"), names | {"val_masks": names["masks"]}, names)
    assert names["mask"].shape == (33, 40)
