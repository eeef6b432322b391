"""What a registered version answers, asked as MLflow's server asks it, and what is refused."""

import base64
import io
import json
import math
import shutil
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import unetpp
from pipelines.core import checksums
from pipelines.export import write_depth
from pipelines.registry import model_versions
from pipelines.registry.read_back import differing
from pipelines.served import Served, images
from pipelines.served.params import RequestError
from pipelines.served.turns import Ticket
from tests.waiting import wait_for
from unetpp import NestedUNet, UserError
from unetpp.engines import family
from unetpp.files import sha256
from unetpp.inference.predictor import Predictor
from unetpp.models.model_file import Trained
from unetpp.network.masks import FOR_INSTANCES

load_model = model_versions.mlflow.pyfunc.load_model


def make(num_classes: int = 1, multilabel: bool = False, size: int | None = None, **options) -> Trained:
    torch.manual_seed(0)
    network = NestedUNet((4, 6, 8), num_classes=num_classes, multilabel=multilabel, **options).eval()
    with torch.no_grad():  # half of all pixels are on either side of every threshold
        for depth, logits in zip(network.depths, network(torch.randn(1, 3, 64, 64)), strict=True):
            network.heads[str(depth)].bias -= logits[0].flatten(1).median(dim=1).values
    return Trained(network, size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a model") / "L2"
    model_versions.write_model(folder, make(), 2)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder))


def picture(height: int = 40, width: int = 56, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind)
    return file.getvalue()


def text(image: np.ndarray, kind: str = "PNG") -> str:
    return base64.b64encode(encoded(image, kind)).decode()


def ask(model, body, kind: str = "application/json") -> tuple[int, dict]:
    """Status and answer of MLflow's server, without a network."""
    # Not above: mlflow warns while it is imported, and `registry` imports it without its warnings.
    from mlflow.pyfunc import scoring_server

    data = body if isinstance(body, str | bytes) else json.dumps(body)
    try:
        done = scoring_server.invocations(data, kind, model, model.metadata.get_input_schema())
    except model_versions.MlflowException as error:
        return error.get_http_status_code(), json.loads(error.serialize_as_json())
    return done.status, json.loads(done.response)


def expected(image: np.ndarray, depth: int = 2, threshold: float = 0.5, trained: Trained | None = None) -> np.ndarray:
    trained = trained or make()
    return (Predictor(trained, depth).probs(image)[0] >= threshold).astype(np.uint8)


def test_every_form_of_arrays_gives_the_same_mask(model):
    image, grey = picture(), picture(channels=1)[:, :, 0]
    mask = expected(image)
    assert 0.02 < mask.mean() < 0.98
    assert np.array_equal(model.predict(image), mask)
    assert np.array_equal(model.predict(image[None]), mask[None])
    assert np.array_equal(model.predict(np.stack([image, image])), np.stack([mask, mask]))
    assert np.array_equal(model.predict([image]), mask[None])
    mask = expected(np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(model.predict(grey), mask)
    assert np.array_equal(model.predict(np.stack([grey] * 5)), np.stack([mask] * 5))
    assert np.array_equal(model.predict(np.dstack([grey] * 3 + [grey * 0])), mask)  # alpha is dropped
    for kind in (np.uint16, ">u2"):
        assert np.array_equal(model.predict((grey.astype(np.uint16) * 257).astype(kind)), mask)


def test_images_of_different_sizes_are_a_list_of_masks(model):
    images = [picture(40, 56), picture(33, 17), picture(1, 1)]
    found = model.predict(images)
    assert isinstance(found, list)
    for one, image in zip(found, images, strict=True):
        assert np.array_equal(one, expected(image))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG"])
def test_files_are_read_as_the_pipeline_reads_them(model, kind):
    image = picture()
    content = encoded(image, kind)
    pixels = np.array(Image.open(io.BytesIO(content)))
    assert np.array_equal(model.predict(content), expected(pixels))
    table = pd.DataFrame({"image": [content, content], "id": [1, 2]})
    assert np.array_equal(model.predict(table), np.stack([expected(pixels)] * 2))


def test_every_form_of_json_gives_the_same_mask(model):
    image = picture()
    mask, pixels, file = expected(image).tolist(), image.tolist(), text(image)
    wrapped = "\n".join(file[i : i + 76] for i in range(0, len(file), 76))  # as the command base64 writes it
    for body in (
        {"inputs": [pixels]},
        {"instances": [pixels]},
        {"inputs": [file]},
        {"instances": [file]},
        {"inputs": [wrapped]},
        {"inputs": [{"image": file}]},
        {"instances": [{"image": file}]},
        {"instances": [{"b64": file}]},
        {"instances": [{"image": pixels}]},
        {"dataframe_split": {"columns": ["image"], "data": [[file]]}},
        {"dataframe_split": {"columns": ["image"], "data": [[pixels]]}},
        {"dataframe_records": [{"image": file}]},
    ):
        assert ask(model, body) == (200, {"predictions": [mask]}), body.keys()
    for body in ({"inputs": pixels}, {"inputs": file}):
        assert ask(model, body) == (200, {"predictions": mask})
    other = picture(20, 31)
    both = [mask, expected(other).tolist()]
    assert ask(model, {"inputs": [file, text(other)]}) == (200, {"predictions": both})
    assert ask(model, {"inputs": [{"image": pixels}, {"image": other.tolist()}]}) == (200, {"predictions": both})
    assert ask(model, f"image\n{file}\n", "text/csv") == (200, {"predictions": [mask]})


def test_params_choose_depth_threshold_and_what_is_answered(model):
    image, trained = picture(), make()

    def probs(depth: int) -> np.ndarray:
        return Predictor(trained, depth).probs(image)

    found = model.predict(image, {"mode": "probabilities"})
    np.testing.assert_allclose(found, probs(2), atol=1e-5)
    assert (found.dtype, found.shape) == (np.float32, (1, 40, 56))
    found = model.predict(image, {"mode": "probabilities", "depth": 1})
    np.testing.assert_allclose(found, probs(1), atol=1e-5)
    assert np.array_equal(model.predict(image, {"depth": 1, "threshold": 0.45}), expected(image, 1, 0.45))
    assert np.array_equal(model.predict(image, {"mode": "mean"}), Predictor(trained, heads="mean").mask(image))
    answer = ask(model, {"inputs": [text(image)], "params": {"encoding": "png", "depth": 1}})[1]["predictions"]
    png = cv2.imdecode(np.frombuffer(base64.b64decode(answer[0]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert png is not None
    assert np.array_equal(png, expected(image, 1) * 255)


def test_classes_are_indices_and_labels_are_bits(tmp_path):
    image = picture()
    classes, labels = make(3), make(2, multilabel=True, upsampling="bilinear")
    for name, trained in (("classes", classes), ("labels", labels)):
        model_versions.write_model(tmp_path / name, trained, 2)
    model = load_model(str(tmp_path / "classes"))
    probs = Predictor(classes).probs(image)
    assert np.array_equal(model.predict(image), probs.argmax(axis=0))
    np.testing.assert_allclose(model.predict([image], {"mode": "probabilities"})[0], probs, atol=1e-5)
    status, answer = ask(model, {"inputs": [text(image)], "params": {"threshold": 0.4}})
    assert (status, "the most probable one is chosen" in answer["message"]) == (400, True)
    model = load_model(str(tmp_path / "labels"))
    probs = Predictor(labels).probs(image)
    bits = (probs[0] >= 0.499) * 1 + (probs[1] >= 0.499) * 2
    assert len(np.unique(bits)) > 2
    assert np.array_equal(model.predict(image, {"threshold": 0.499}), bits)


def test_objects_are_numbers_where_the_model_parts_them(tmp_path):
    image, trained = picture(), make(targets=FOR_INSTANCES)
    model_versions.write_model(tmp_path / "model", trained, 2)
    assert "scikit-image==" in (tmp_path / "model/requirements.txt").read_text()
    model = load_model(str(tmp_path / "model"))
    expected = Predictor(trained, 1).instances(image)
    assert expected.max() > 1
    assert np.array_equal(model.predict(image, {"mode": "instances", "depth": 1}), expected)
    params = {"mode": "instances", "depth": 1, "encoding": "png", "details": True}
    answer = ask(model, {"inputs": [text(image)], "params": params})[1]["predictions"][0]
    png = cv2.imdecode(np.frombuffer(base64.b64decode(answer["instances"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert png is not None
    assert (png.dtype, png.tolist()) == (np.uint16, expected.tolist())
    assert model.predict(image, {"mode": "probabilities"}).shape == (3, 40, 56)
    assert np.array_equal(model.predict(image), Predictor(trained).mask(image))


def test_images_are_resized_as_for_training_and_masks_return_to_their_size(tmp_path):
    trained = make(size=32)
    model_versions.write_model(tmp_path / "model", trained, 2)
    image = picture(70, 90)
    found = load_model(str(tmp_path / "model")).predict(image)
    assert np.array_equal(found, expected(image, trained=trained))


def test_a_network_without_shallow_heads_answers_at_its_own_depth(tmp_path):
    model_versions.write_model(tmp_path / "model", make(skips="plain", deep_supervision=False), 2)
    model = load_model(str(tmp_path / "model"))
    assert model.predict(picture(), {"mode": "mean"}).shape == (40, 56)
    assert "answers at 2" in ask(model, {"inputs": [text(picture())], "params": {"depth": 1}})[1]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": ["no image!"]}, "image 1 of 1: found text that is not base64"),
        ({"inputs": [text(picture()), base64.b64encode(b"hello").decode()]}, "image 2 of 2: found no image but a file"),
        ({"inputs": [text(picture())[:200]]}, "image 1 of 1: found"),
        ({"inputs": [[[300, 2], [3, 4]]]}, "found values from 2 to 300; expected whole numbers from 0 to 255"),
        ({"inputs": [[[-1, 2], [3, 4]]]}, "found values from -1 to 4"),
        ({"inputs": [[[0.5, 0.2], [0.1, 0.3]]]}, "found float64; expected whole numbers from 0 to 255"),
        ({"inputs": [1, 2, 3]}, "found an array of shape (3,)"),
        ({"inputs": []}, "found no image; expected at least one"),
        ({"inputs": [{"picture": [[1]]}]}, "found the keys picture; expected only the key image"),
        ({"inputs": [[[[[1]]]]]}, "expected (H, W), (H, W, C), (N, H, W) or (N, H, W, C)"),
        ({"inputs": [[[1, 2], [3]]]}, "inhomogeneous"),
        ({"images": []}, "exactly one of the input fields"),
        ("{", "valid JSON"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}, "found the columns a, b; expected a column"),
        ({"inputs": [[[1, 2], [3, 4]]], "params": {"depth": 3}}, "depth: found 3; this version answers at 1, 2"),
        ({"inputs": [[[1, 2], [3, 4]]], "params": {"depth": "two"}}, "depth"),
        ({"inputs": [[[1, 2], [3, 4]]], "params": {"threshold": 2}}, "between 0 and 1"),
        ({"inputs": [[[1, 2], [3, 4]]], "params": {"mode": "best"}}, "expected one of single, mean, probabilities"),
        ({"inputs": [[[1, 2], [3, 4]]], "params": {"mode": "instances"}}, "this version only predicts masks"),
        (
            {"inputs": [[[1, 2], [3, 4]]], "params": {"engine": "abacus"}},
            "no such engine; expected auto or one of torch",
        ),
        ({"inputs": [[[1, 2], [3, 4]]], "params": {"engine": "openvino", "mode": "mean"}}, "only torch computes"),
        ({"inputs": [[[1, 2], [3, 4]]], "params": {"max_latency_ms": -1}}, "expected milliseconds, or 0"),
        ({"inputs": [[[1, 2], [3, 4]]], "params": {"degrade": True}}, "found true without max_latency_ms"),
        (
            {"inputs": [[[1, 2], [3, 4]]], "params": {"mode": "probabilities", "encoding": "png"}},
            "probabilities, which a PNG cannot hold",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)
def test_a_bad_request_is_answered_with_400_and_the_reason(model, body, message):
    status, answer = ask(model, body)
    assert status == 400, answer
    assert message in answer["message"]
    assert "Traceback" not in str(answer)


def test_a_small_file_of_very_many_pixels_is_refused_before_it_is_decoded(model):
    status, answer = ask(model, {"inputs": [text(np.zeros((20_000, 6_000), np.uint8))]})
    assert status == 400
    assert "found too many pixels (6000x20000 px); expected at most what is left of this server's" in answer["message"]


def test_a_refusal_does_not_repeat_the_request(model):
    status, answer = ask(model, {"inputs": [text(picture(300, 300)) + "!"]})
    assert status == 400
    assert len(json.dumps(answer)) < 300


def test_a_fault_of_the_server_is_a_500_without_its_traceback(model, monkeypatch, caplog):
    monkeypatch.setattr(Served, "_answer", lambda *_: 1 / 0)
    status, answer = ask(model, {"inputs": [text(picture())]})
    assert (status, answer["message"]) == (500, "the server failed (ZeroDivisionError); see its log")
    assert "ZeroDivisionError: division by zero" in caplog.text


def test_a_model_is_files_without_code_or_pickle(folder, monkeypatch):
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {
        *("MLmodel", "model.safetensors", "SHA256SUMS", "requirements.txt", "conda.yaml"),
        *("python_env.yaml", "input_example.json", "serving_input_example.json"),
    }
    for path in folder.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))  # a pickle, or a zip that may hold one
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with monkeypatch.context() as patch:
        patch.setattr("pickle.load", None)
        patch.setattr("pickle.loads", None)
        load_model(str(folder))


def test_one_image_at_a_time_is_in_memory(monkeypatch):
    """Small files declare large images: eight PNGs of 9000x9000 px, 821 KB in all, took 2 GB more than one."""
    alive, most, load = weakref.WeakSet(), [], images.decode_image

    def decode(*arguments, **options):
        image = load(*arguments, **options).view(Pixels)
        alive.add(image)
        most.append(len(alive))
        return image

    monkeypatch.setattr(images, "decode_image", decode)
    model, files = Served(make()), [encoded(picture(size)) for size in (24, 32, 40, 48)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: model.predict(files), range(4)))
    assert max(most) == 1
    for answer in answers:
        assert [one.shape[0] for one in answer] == [24, 32, 40, 48]


class Pixels(np.ndarray):
    """An array that a weak reference may point to by its identity."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]


class Fake(Served):
    """By a clock of its own, in which an answer at a depth takes what was measured of it."""

    def __init__(self, times: dict[int, float], trained: Trained | None = None):
        self.now, self.times, self.measured, self.slower = 0.0, times, [], 1
        super().__init__(trained or make(), clock=lambda: self.now)

    def measure(self, engines, size):
        assert set(engines) == set(self.times)
        self.measured.append(size)
        return self.times

    def _answer(self, engine, image, request):
        self.now += self.times[engine.about.depth] * self.slower
        return super()._answer(engine, image, request)

    def ask(self, data=None, **params) -> Any:
        return self.predict(picture() if data is None else data, {"details": True, **params})


def test_an_answer_says_what_made_it_where_that_is_asked_for(model):
    image = picture()
    found = model.predict(image, {"details": True})
    assert np.array_equal(found.pop("mask"), expected(image))
    assert found.pop("latency_ms") > 0
    assert found == {"depth": 2, "engine": "torch", "within": None}
    params = {"details": True, "encoding": "png", "depth": 1, "max_latency_ms": 1e6, "degrade": True}
    status, answer = ask(model, {"inputs": [text(image)] * 2, "params": params})
    assert status == 200
    for one in answer["predictions"]:
        assert (one["depth"], one["within"], one["mask"]) == (1, True, answer["predictions"][0]["mask"])
    (found,) = ask(model, {"inputs": [text(image)], "params": {"details": True, "mode": "probabilities"}})[1][
        "predictions"
    ]
    assert np.shape(found["probabilities"]) == (1, 40, 56)


def test_a_budget_chooses_the_deepest_depth_that_fits(caplog):
    served = Fake({1: 10.0, 2: 20.0})
    for budget, depth in ((25, 2), (20, 2), (19.9, 1), (10, 1)):
        found = served.ask(max_latency_ms=budget)
        assert (found["depth"], found["within"], found["latency_ms"]) == (depth, True, served.times[depth])
        assert np.array_equal(found["mask"], expected(picture(), depth))
    assert served.ask(max_latency_ms=100, depth=1)["depth"] == 1  # never deeper than asked for
    assert served.ask(depth=0)["depth"] == served.ask(depth=0, max_latency_ms=100)["depth"] == 2  # auto
    assert served.ask(max_latency_ms=20, mode="mean")["depth"] == 2
    assert not caplog.records
    found = served.ask(max_latency_ms=9)  # where nothing fits, the shallowest, said so
    assert (found["depth"], found["within"]) == (1, False)
    assert "missed the budget: L1 by torch answered after 10.0 ms of 9 ms" in caplog.text
    assert served.measured == [(40, 56)] * 2  # once a size, for the heads and for their mean


def test_the_images_of_a_request_share_its_budget():
    served = Fake({1: 10.0, 2: 20.0})
    assert [one["depth"] for one in served.ask([picture()] * 3, max_latency_ms=60)] == [2, 2, 2]
    found = served.ask([picture()] * 3, max_latency_ms=59)
    assert [(one["depth"], one["latency_ms"]) for one in found] == [(1, 10), (1, 20), (1, 30)]
    found = served.ask([picture()] * 3, max_latency_ms=55, degrade=True)  # what one leaves is the next one's
    assert [one["depth"] for one in found] == [1, 2, 2]


def burst(served: Fake, number: int, **params) -> list[dict]:
    """The answers of as many clients that ask at once, in the order in which they came."""
    with ThreadPoolExecutor(number + 1) as threads:
        all_wait = threading.Event()
        holder = threads.submit(served.turns.take, Ticket(math.inf, 1), all_wait.wait)
        wait_for(served.turns.queue)
        asked = [threads.submit(served.ask, **params) for _ in range(number)]
        wait_for(lambda: len(served.turns.queue()) == number + 1)
        all_wait.set()
        holder.result()
        return sorted((one.result() for one in asked), key=lambda found: found["latency_ms"])


def test_under_load_answers_are_shallower_where_that_is_asked_for_and_late_elsewhere(caplog):
    served = Fake({1: 10.0, 2: 20.0})
    found = burst(served, 8, max_latency_ms=100, degrade=True)
    assert [(one["depth"], one["within"]) for one in found] == [(1, True)] * 6 + [(2, True)] * 2
    assert [one["depth"] for one in burst(served, 8, max_latency_ms=160, degrade=True)] == [2] * 8
    assert not caplog.records
    found = burst(served, 8, max_latency_ms=50, degrade=True)  # too little even for the shallowest
    assert [(one["depth"], one["within"]) for one in found] == [(1, True)] * 5 + [(1, False)] * 3
    assert len(caplog.records) == 3
    found = burst(served, 8, max_latency_ms=100)
    assert [one["depth"] for one in found] == [2] * 8
    assert [one["latency_ms"] for one in found] == [20.0 * place for place in range(1, 9)]  # the queue counts
    assert [one["within"] for one in found] == [True] * 5 + [False] * 3


def test_a_machine_that_others_use_too_answers_shallower_where_that_is_asked_for():
    served = Fake({1: 10.0, 2: 20.0})
    served.slower = 2
    assert [served.ask(max_latency_ms=30)["depth"] for _ in range(9)] == [2] * 9
    assert served.ask(max_latency_ms=30, degrade=True)["depth"] == 1
    assert served.ask(max_latency_ms=40, degrade=True)["depth"] == 2
    served.slower = 1
    assert [served.ask(max_latency_ms=30, degrade=True)["depth"] for _ in range(9)][-1] == 2  # it is quick again


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A version that carries L1 as ONNX, measured."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    model_versions.write_model(folder, make(), 2)
    (folder / "exports").mkdir()
    write_depth(make(), 1, ("onnx",), folder / "exports/L1", 20, [])
    own, digest = {"model_sha256": sha256(folder / "model.safetensors")}, sha256(folder / "exports/L1/model.onnx")
    entry = {"depth": "L1", "file": "L1/model.onnx", "sha256": digest}
    listing = own | {"exports": [entry | {"format": "onnx"}]}
    (folder / "exports/exports.json").write_text(json.dumps(listing))
    row = entry | {"engine": "onnxruntime", "iou_image": 0.9, "difference_iou": 0.0, "within": True}
    (folder / "engines.json").write_text(json.dumps(own | {"format": 1, "engines": [row]}))
    checksums.seal(folder)
    return folder


def test_the_fastest_engine_that_is_exact_enough_answers(exported, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    times = {"torch": 3.0, "onnxruntime": 2.0}
    monkeypatch.setattr(family, "probe", lambda _key, openers, *_: {one: times[one] for one in openers})
    model, image = load_model(str(exported)), picture()
    found = model.predict(image, {"details": True, "depth": 1})
    assert found["engine"] == "onnxruntime"
    np.testing.assert_array_equal(found["mask"], expected(image, 1))
    assert model.predict(image, {"details": True, "depth": 1, "engine": "torch"})["engine"] == "torch"
    for params in ({"depth": 2}, {"depth": 1, "mode": "mean"}):  # no other is there
        assert model.predict(image, {"details": True} | params)["engine"] == "torch"
    status, answer = ask(model, {"inputs": [text(image)], "params": {"engine": "onnxruntime"}})
    assert (status, "L2 has no export in onnx" in answer["message"]) == (400, True)
    found = model.predict(image, {"details": True, "max_latency_ms": 1e6})
    assert (found["depth"], found["engine"]) == (2, "torch")


def test_a_version_whose_exports_nobody_measured_is_answered_by_torch(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    (tmp_path / "model/engines.json").unlink()
    (tmp_path / "model/SHA256SUMS").unlink()
    checksums.seal(tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    assert model.predict(picture(), {"details": True, "depth": 1})["engine"] == "torch"
    assert model.predict(picture(), {"details": True, "depth": 1, "engine": "onnxruntime"})["engine"] == "onnxruntime"


def test_an_exported_engine_answers_without_torch(exported):
    code = (
        "import sys\nimport numpy as np\nfrom pipelines.served import _load_pyfunc\n"
        "params = {'depth': 1, 'engine': 'onnxruntime'}\n"
        f"print(_load_pyfunc({str(exported)!r}).predict(np.zeros((8, 9, 3), np.uint8), params).shape)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "(8, 9)"), done.stderr


def test_params_that_are_null_are_left_out(model):
    body = {"inputs": [text(picture())], "params": {"depth": None, "threshold": None, "max_latency_ms": None}}
    assert ask(model, body) == (200, {"predictions": [expected(picture()).tolist()]})


def test_a_version_from_before_engines_and_budgets_answers(folder, tmp_path):
    """Its MLmodel names `pipelines.served` and four params."""
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "MLmodel"
    described = yaml.safe_load(file.read_text())
    specs = json.loads(described["signature"]["params"])
    assert [(one["name"], one["type"]) for one in specs[:4]] == [
        ("depth", "long"),
        ("threshold", "double"),
        ("mode", "string"),
        ("encoding", "string"),
    ]
    described["signature"]["params"] = json.dumps(specs[:4])
    file.write_text(yaml.safe_dump(described))
    checksums.seal(tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    assert np.array_equal(model.predict(picture(), {"depth": 1, "details": True}), expected(picture(), 1))


def test_the_images_of_a_request_are_bounded_in_sum(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 2 * 40 * 56)
    model = Served(make())
    assert len(model.predict([picture(), encoded(picture())])) == 2
    for last in (picture(1, 1), encoded(picture(1, 1))):
        with pytest.raises(RequestError, match=r"image 3 of 3: .*send fewer images at once"):
            model.predict([picture(), picture(), last])


def test_sums_are_those_of_sha256sum(folder):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", checksums.SUMS], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": OK") == 7


@pytest.mark.parametrize("name", ["model.safetensors", "MLmodel", "requirements.txt"])
def test_a_model_of_other_bytes_is_refused_by_the_files_name(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "model")
    changed = bytearray((tmp_path / "model" / name).read_bytes())
    changed[-2] ^= 1
    (tmp_path / "model" / name).write_bytes(changed)
    with pytest.raises(UserError, match=rf"{name}: found sha256 \w+; expected \w+, as SHA256SUMS says"):
        checksums.check_seal(tmp_path / "model")
    if name != "MLmodel":  # which MLflow itself reads first
        with pytest.raises(UserError, match=f"{name}: found"):
            load_model(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "cannot be read"),
        ("", "it lacks MLmodel, model.safetensors"),
        ("a  MLmodel\nc  model.safetensors\nd  ../x\n", r"it names '\.\./x'"),
        ("a  MLmodel\nc  model.safetensors\nd  /etc/x\n", "it names '/etc/x'"),
    ],
)
def test_sums_that_are_none_are_refused(tmp_path, lines, message):
    if lines is not None:
        (tmp_path / checksums.SUMS).write_text(lines)
    with pytest.raises(UserError, match=message):
        checksums.check_seal(tmp_path)


def test_a_missing_file_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        checksums.check_seal(tmp_path / "model")


def test_a_version_of_another_network_is_told_by_how_much_it_differs(folder, monkeypatch):
    image = picture()
    right = Predictor(make()).probs(image)
    loaded, served = unetpp.load(folder), load_model(str(folder))
    assert differing(loaded, served, {"image0": image, "L2/image0": right}, 2) == ""
    wrong = right + 0.25
    assert differing(loaded, served, {"image0": image, "L2/image0": wrong}, 2) == (
        "by unetpp.load differs from its network by up to 0.25"
    )
    other = load_model(str(folder))
    monkeypatch.setattr(other, "predict", lambda *_: right * np.nan)
    assert "by the pyfunc differs" in differing(loaded, other, {"image0": image, "L2/image0": right}, 2)
    assert "predicts shape" in differing(loaded, served, {"image0": image, "L2/image0": right[..., 1:]}, 2)
