from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.unetpp.network.classic import with_lived_in_norms
from unetpp import NestedUNet, UserError
from unetpp.engines.runtimes import ExportEngine, open_export
from unetpp.engines.torch_engine import TorchEngine
from unetpp.export.graphs import capture, save_onnx, save_pt2
from unetpp.export.verification import Comparison, compare, make_examples, opened
from unetpp.models.model_file import Trained
from unetpp.network.masks import FOR_INSTANCES

# Each kind of network, and a few that have several properties at once: those are tested always, the others by night.
BOTH = [
    {"skips": "plain", "deep_supervision": False, "norm": "group", "upsampling": "transposed", "dropout": 0.2},
    {"num_classes": 3, "in_channels": 1, "targets": FOR_INSTANCES},
]
KINDS = [
    {"skips": "short", "upsampling": "transposed"},
    {"skips": "encoder", "norm": "instance", "upsampling": "bilinear"},
    {"skips": "dense", "deep_supervision": False, "targets": FOR_INSTANCES, "norm": "instance"},
    {"skips": "encoder", "targets": FOR_INSTANCES, "upsampling": "transposed"},
    {"num_classes": 2, "multilabel": True, "dropout": 0.3, "norm": "group"},
]
FILES = ("model.safetensors", "model.pt2", "model.onnx")


def made(kind: dict, widths=(4, 6, 8)) -> Trained:
    torch.manual_seed(0)
    return Trained(with_lived_in_norms(NestedUNet(widths, **kind)), None)


def eager(trained: Trained) -> TorchEngine:
    return TorchEngine(trained.segmenter(), trained.about)


def write(trained: Trained, folder, depth: int | None = None) -> None:
    folder.mkdir(exist_ok=True)
    trained.folded(depth).save(folder / FILES[0])
    program = capture(trained.folded(depth).segmenter())
    save_pt2(program, folder / FILES[1])
    save_onnx(program, folder / FILES[2], 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [*BOTH, *(pytest.param(kind, marks=pytest.mark.nightly) for kind in KINDS)], ids=lambda kind: str(kind)
)
def test_every_format_in_every_runtime_gives_the_probabilities_of_the_network(kind, tmp_path):
    trained = made(kind)
    write(trained, tmp_path)
    found = compare(tmp_path, trained, dict.fromkeys(FILES, 2))
    assert [(one.file, one.runtime) for one in found] == [
        *((file, "torch") for file in FILES[:2]),
        (FILES[2], "onnxruntime"),
        (FILES[2], "openvino"),
    ]
    assert all(one.max_difference < 1e-5 for one in found), found

    channels = trained.network.in_channels
    least_sizes = [(1, channels, 2, 3)]
    if trained.network.norm != "instance":  # of one pixel an instance has no variance: the answer is rounding alone
        least_sizes.append((2, channels, 1, 1))
    for least in least_sizes:
        image = np.random.default_rng(0).random(least, dtype=np.float32)
        expected = eager(trained)(image)
        # A norm over pixels that are all alike divides what rounding left of their variance by nearly nothing.
        atol = 1e-5 if trained.network.norm == "batch" else 1e-3
        for file in FILES:
            for predict in opened(tmp_path / file, trained.about.at(2)).values():
                np.testing.assert_allclose(predict(image), expected, atol=atol)

    said = onnx.load(tmp_path / FILES[2])
    onnx.checker.check_model(said)
    assert said.opset_import[0].version == 20
    assert all(node.input[2] for node in said.graph.node if node.op_type == "Resize")  # by a constant factor
    sizes = [
        [axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim]
        for one in (said.graph.input[0], *said.graph.output)
    ]
    assert sizes == [["batch", one, "height", "width"] for one in (channels, trained.network.num_outputs)]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, pytest.param(23, marks=pytest.mark.nightly)])
def test_the_opset_is_the_one_asked_for(tmp_path, opset):
    trained = made({}, (4, 6))
    save_onnx(capture(trained.folded().segmenter()), tmp_path / "model.onnx", opset)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset
    assert all(one.max_difference < 1e-5 for one in compare(tmp_path, trained, {"model.onnx": 1}))


def test_exports_are_compared_on_batches_of_odd_and_unequal_sides():
    for images in ((), (np.zeros((3, 5, 9), np.float32), np.ones((3, 40, 8), np.float32))):
        shapes = [example.shape for example in make_examples(3, 4, images)]
        assert shapes == [(2, 3, 33, 19), (3, 3, 16, 47), (5, 3, 7, 11)]
    examples = make_examples(1, 1, [np.arange(6, dtype=np.float32).reshape(1, 2, 3)])
    assert examples[0][0, 0].tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]] * 2 + [[0, 1, 2, 0, 1]]


def test_an_export_of_another_network_is_seen(tmp_path):
    made({}).folded(1).save(tmp_path / FILES[0])
    other = made({})
    for weight in other.network.parameters():
        weight.data += 0.1
    (found,) = compare(tmp_path, other, {"model.safetensors": 1})
    assert found.max_difference > 0.01
    (found,) = compare(tmp_path, made({"num_classes": 2}), {"model.safetensors": 1})
    assert found == Comparison("model.safetensors", "torch", float("inf"))  # of another shape


def test_an_answer_of_another_shape_is_refused():
    engine = ExportEngine(Path("model.onnx"), "openvino", made({}).about, lambda *_: np.zeros((0, 1, 0, 0)), False)
    with pytest.raises(UserError, match=r"openvino returned shape \(0, 1, 0, 0\) for images of shape \(1, 3, 1, 1\)"):
        engine(np.zeros((1, 3, 1, 1), np.float32))


def test_what_cannot_be_opened_is_refused_by_name(tmp_path, monkeypatch):
    about = made({}).about
    with pytest.raises(UserError, match=r"none\.onnx: no such file"):
        open_export(tmp_path / "none.onnx")
    for name in ("model.onnx", "model.pt2", "model.tflite"):
        (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(UserError, match=r"model\.tflite: no runtime reads \.tflite; expected an export"):
        open_export(tmp_path / "model.tflite")
    with pytest.raises(UserError, match=r"model\.onnx: torch does not read \.onnx; expected onnxruntime or openvino"):
        open_export(tmp_path / "model.onnx", "torch")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(UserError, match=rf"model\.onnx: {runtime} cannot read this file"):
            open_export(tmp_path / "model.onnx", runtime, about)
    with pytest.raises(UserError, match=r"model\.pt2: opening a \.pt2 can run its author's code"):
        open_export(tmp_path / "model.pt2")

    monkeypatch.setattr("unetpp.engines.runtimes.missing", lambda _: True)
    for runtime, named in (("openvino", "openvino"), (None, "onnxruntime or openvino")):
        with pytest.raises(UserError, match=f"{named} is not installed: pip install 'PATH.exports.'"):
            open_export(tmp_path / "model.onnx", runtime)


@pytest.mark.slow
def test_an_export_pads_to_the_canvas_as_its_network_does(tmp_path):
    trained = replace(made({"in_channels": 4}), size=(24, 40), fit="pad")
    write(trained, tmp_path)
    about = trained.about.at(2)
    for shape in ((2, 4, 24, 9), (1, 4, 5, 40), (1, 4, 30, 50)):
        image = np.random.default_rng(0).random(shape, dtype=np.float32)
        expected = eager(trained)(image)
        for file in FILES[1:]:
            for predict in opened(tmp_path / file, about).values():
                np.testing.assert_allclose(predict(image), expected, atol=1e-5)
    assert not open_export(tmp_path / FILES[2]).takes_parts  # it pads inside, and such images are small
