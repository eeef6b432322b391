"""Networks for instances: they learn to part what touches, and every engine parts it as the network does."""

from functools import cache

import numpy as np
import pytest
import torch

import unetpp
from unetpp.data.targets import number_objects
from unetpp.engines.engine import Engine
from unetpp.engines.runtimes import open_export
from unetpp.engines.torch_engine import TorchEngine, deploy
from unetpp.export.graphs import capture, save_onnx
from unetpp.export.quantisation import quantise
from unetpp.inference.instances import separate
from unetpp.inference.symmetric import Symmetric
from unetpp.inference.tiles import predict_image, predict_large
from unetpp.models.model_file import Trained, load_model
from unetpp.network.masks import FOR_INSTANCES
from unetpp.scores.object_matching import Objects, find_pairs

SIDE = 48
ENCODER = {"encoder": "tf_efficientnet_lite0"}


class Discs:
    """Pairs of discs that touch, as a split has them: one foreground object a pair, two by their numbers."""

    def __init__(self, num: int, seed: int):
        self.path, self._seed, self._num = "discs", seed, num
        self._made = [self._draw(np.random.default_rng((seed, index))) for index in range(num)]

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.mgrid[:SIDE, :SIDE]
        numbers = np.zeros((SIDE, SIDE), np.int32)
        for place in range(4):
            top, left = 12 + 24 * (place // 2), 12 + 24 * (place % 2)
            angle = rng.uniform(0, np.pi)
            down, right = 4.7 * np.sin(angle), 4.7 * np.cos(angle)
            first, second = ((y - top - s * down) ** 2 + (x - left - s * right) ** 2 for s in (1, -1))
            numbers[(np.minimum(first, second) < 36) & (first < second)] = 2 * place + 1
            numbers[(np.minimum(first, second) < 36) & (first >= second)] = 2 * place + 2
        image = np.where(numbers > 0, 170, 60)[..., None] + rng.normal(0, 12, (SIDE, SIDE, 1))
        return image.clip(0, 255).astype(np.uint8), numbers

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, numbers = self._made[index]
        return image, (numbers > 0).astype(np.uint8)

    def id(self, index: int) -> str:
        return str(index)

    def instances(self, index: int) -> np.ndarray:
        return self._made[index][1]

    def limits(self, _: int) -> tuple[float, float]:
        return 0.0, 255.0

    def moments(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = self[index][0].reshape(-1, 1) / np.float32(255)
        return pixels.mean(axis=0), pixels.std(axis=0)

    def spots(self, _: int) -> list[np.ndarray]:
        return []


@cache
def trained(**kind) -> Trained:
    torch.manual_seed(0)
    network = unetpp.NestedUNet((8, 16, 16), 1, targets=FOR_INSTANCES, upsampling="bilinear", **kind)
    how = {"epochs": 12, "batch_size": 4, "learning_rate": 1e-2, "brightness": 0.0, "precision": "fp32"}
    return unetpp.fit(network, Discs(24, 0), Discs(4, 1), after_epoch=None, **how)


def average_precision(engine, numbered=separate) -> float:
    """Mean over discs that were not learnt from; `numbered` makes objects of probabilities."""
    discs, found = Discs(6, 2), []
    for index in range(len(discs)):
        probs = predict_image(engine, discs[index][0])
        hat = numbered(probs, 1, engine.about.separation())
        found.append(find_pairs(Objects.of_numbers(hat), Objects.of_numbers(discs.instances(index))).match())
    return float(np.mean([one.average_precision for one in found]))


def connected(probs: np.ndarray, *_) -> np.ndarray:
    return number_objects((probs[0] >= 0.5).astype(np.uint8))


def test_what_touches_is_parted_where_connected_pixels_are_not(tmp_path):
    made = trained()
    assert made.info["separation"].keys() == {"L1", "L2"}
    made.save(tmp_path / "model.safetensors")
    again = load_model(tmp_path)
    engine = TorchEngine(again.segmenter(), again.about)
    assert average_precision(engine) > 0.7
    assert average_precision(engine, connected) < 0.2
    assert average_precision(Symmetric(engine, "all")) > 0.7


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [{}, {"skips": "short"}, {"skips": "encoder"}, ENCODER], ids=str)
def test_every_engine_parts_as_the_network_does(kind, tmp_path):
    made, discs = trained(**kind), Discs(6, 2)
    images = [discs[index][0] for index in range(len(discs))]
    for depth in made.depths:
        eager = TorchEngine(made.segmenter(depth), made.about.at(depth))
        expected = average_precision(eager)
        save_onnx(capture(made.folded(depth).segmenter()), tmp_path / "model.onnx", 20)
        batches = (one.transpose(2, 0, 1)[None] / np.float32(255) for one in images)
        quantise(tmp_path / "model.onnx", tmp_path / "int8.onnx", batches)
        engines: dict[str, Engine] = {"torch": deploy(made, depth)}
        for runtime in ("onnxruntime", "openvino"):
            engines[runtime] = open_export(tmp_path / "model.onnx", runtime, made.about.at(depth))
            engines[f"{runtime}-int8"] = open_export(tmp_path / "int8.onnx", f"{runtime}-int8", made.about.at(depth))
        probs = predict_image(eager, images[0])
        for name, engine in engines.items():
            found = predict_image(engine, images[0])
            assert found.shape == probs.shape == (3, SIDE, SIDE)
            if "int8" in name:
                assert average_precision(engine) > expected - 0.05, name
            else:
                np.testing.assert_allclose(found, probs, atol=1e-4, err_msg=name)
        large = np.tile(images[0], (5, 5, 1))
        tiled = predict_large(eager, large, tile_px=128)
        np.testing.assert_allclose(tiled, predict_image(eager, large), atol=1e-3)
