"""Laws of engines: all of a family answer alike, take parts of images, and are found where their files are."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.unetpp.engines.made import made
from unetpp import Predictor, UserError
from unetpp.data.scaling import measure_statistics
from unetpp.engines.engine import ENGINES, OWN, STATISTICS
from unetpp.engines.family import Family, as_family, choose, find_family, open_engine
from unetpp.engines.runtimes import open_export
from unetpp.engines.torch_engine import TorchEngine
from unetpp.inference.tiles import predict_tiled

pytestmark = pytest.mark.slow  # a graph is captured
RNG = np.random.default_rng(0)
EXPORTED = [name for name, kind in ENGINES.items() if kind.format and kind.is_here]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("project")
    trained = made(folder)
    family = find_family(folder / "train", folder / "exports", folder / "engines.json")
    eager = TorchEngine(trained.segmenter(1), trained.about.at(1))
    return SimpleNamespace(folder=folder, trained=trained, family=family, eager=eager)


def test_engines_agree_on_images_and_on_parts_of_larger_ones(project):
    images = RNG.random((3, 3, 37, 50), np.float32)
    by_others = measure_statistics(images)[::-1].copy()
    here = project.family.engines(1)
    assert {"torch", "onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8"} <= set(here)
    for name in here:
        engine = open_engine(project.family, 1, name)
        assert (engine.name, engine.takes_parts, engine.about.depth) == (name, True, 1)
        for statistics in (None, by_others):
            found, expected = engine(images, statistics), project.eager(images, statistics)
            if ENGINES[name].precision == "fp32":
                np.testing.assert_allclose(found, expected, atol=1e-4)
            assert ((found > 0.5) == (expected > 0.5)).mean() > 0.97, name


def test_a_large_image_of_low_contrast_is_standardised_as_exactly_as_a_small_one(project):
    image = (RNG.integers(229, 233, (1, 3, 700, 900)) / 255).astype(np.float32)
    expected, by_graph = project.eager(image), np.tile(np.array(OWN, np.float32), (1, 3, 1))
    for name in ("onnxruntime", "openvino"):
        engine = open_engine(project.family, 1, name)
        for statistics in (None, by_graph):  # the latter is what other programs do
            np.testing.assert_allclose(engine(image, statistics), expected, atol=2e-4)
    for name in {"openvino-bf16"} & set(project.family.engines(1)):  # not in bf16, of which a step is a grey level
        np.testing.assert_allclose(open_engine(project.family, 1, name)(image), expected, atol=0.02)


@pytest.mark.gpu
def test_a_gpu_answers_as_the_processor_does(project):
    images = RNG.random((3, 3, 37, 50), np.float32)
    expected = project.eager(images)
    for name, tolerance in (("torch", 0.01), ("torch-bf16", 0.05), ("torch-fp16", 0.02)):  # fp32 in TF32
        engine = open_engine(project.family, 1, name)
        assert isinstance(engine, TorchEngine)
        assert engine.device.type == "cuda"
        np.testing.assert_allclose(engine(images), expected, atol=tolerance)


def test_tiles_equal_the_whole_in_every_runtime(project):
    image = RNG.random((1, 3, 210, 190), np.float32) * np.linspace(0.2, 1, 190, dtype=np.float32)
    for name in ("onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8"):
        engine = open_engine(project.family, 1, name)
        difference = np.abs(predict_tiled(engine, image, tile_px=96) - engine(image))
        # A rounding of the mean can move a number of int8 to the next.
        assert difference.max() < (0.05 if "int8" in name else 1e-4), name
        assert difference.mean() < 1e-3


def test_an_export_of_before_takes_whole_images(project, tmp_path):
    import onnx  # late: the benchmark of a GPU collects this file without it

    model = onnx.load(project.folder / "exports/L1/model.onnx")
    assert [one.name for one in model.graph.input] == ["image", STATISTICS]
    del model.graph.input[1]
    for one in model.graph.initializer:  # a constant, of another name
        one.name = one.name.replace(STATISTICS, "constant")
    for node in model.graph.node:
        node.input[:] = ["constant" if name == STATISTICS else name for name in node.input]
    onnx.save(model, tmp_path / "model.onnx")
    images = RNG.random((2, 3, 37, 50), np.float32)
    for name in ("onnxruntime", "openvino"):
        engine = open_export(tmp_path / "model.onnx", name, project.eager.about)
        assert not engine.takes_parts
        np.testing.assert_allclose(engine(images), project.eager(images), atol=1e-5)


def test_what_counts_is_of_the_very_model(project, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = project.folder
    alone = find_family(folder / "train")
    assert [one for one in alone.engines(1) if ENGINES[one].format] == []
    assert project.family.engines(2) == alone.engines(2) == alone.engines(1)  # L2 has no export
    assert {"onnxruntime", "openvino-int8"} <= set(project.family.exact(1))
    assert {"onnxruntime-int8", "openvino-bf16"}.isdisjoint(project.family.exact(1))
    assert project.family.difference(1, "openvino") == -0.0004

    trained = project.trained
    trained.folded(1).save(tmp_path / "model.safetensors")
    other = find_family(tmp_path, folder / "exports", folder / "engines.json")
    assert (other.exports, other.measured) == (None, None)
    assert find_family(folder / "train", tmp_path, tmp_path / "none").exports is None

    depth = find_family(folder / "exports/L1", measured=folder / "engines.json")  # its folder lists it
    assert set(EXPORTED) <= set(depth.engines(1))
    assert "openvino-int8" in depth.exact(1)
    file = find_family(folder / "exports/L1/model-int8.onnx")
    assert file.engines(1) == ["onnxruntime-int8", "openvino-int8"]
    name, why = choose(find_family(folder / "exports/L1/model.onnx"), 1, (32, 32))  # what was named, and no less exact
    assert name in ("onnxruntime", "openvino")
    assert why.startswith(f"engine {name}: the fastest of 2 here")

    shutil.copytree(folder / "exports", tmp_path / "exports")  # a registered version's folder brings both
    shutil.copy(folder / "engines.json", tmp_path)
    registered = find_family(tmp_path)
    assert "openvino-int8" in registered.exact(1)

    path = tmp_path / "exports/L1/model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"model\.onnx: found the sha256"):
        open_engine(registered, 1, "openvino")
    with pytest.raises(UserError, match=r"model\.onnx: found the sha256"):
        find_family(path)
    measured = json.loads((folder / "engines.json").read_text())
    del measured["engines"][0]["within"]
    (tmp_path / "engines.json").write_text(json.dumps(measured))
    with pytest.raises(UserError, match=r"engines\.json: it lacks within"):
        find_family(tmp_path)


def test_what_is_not_there_is_refused_with_what_is(project):
    family = project.family
    for depth, name, message in (
        (1, "tensorrt", "engine tensorrt: no such engine; expected auto or one of torch, "),
        (2, "openvino", r"L2 has no export in onnx: `unetpp export.*; here are torch"),
        (3, "torch", "depth: found 3; expected one of 1, 2"),
    ):
        with pytest.raises(UserError, match=message):
            open_engine(family, depth, name)
    with pytest.raises(UserError, match="pass only one of them"):
        open_engine(family, 1, heads="mean")
    with pytest.raises(UserError, match=r"heads: found \{3: 1\}"):
        open_engine(family, heads={3: 1})
    with pytest.raises(UserError, match="has no weights for torch"):
        open_engine(find_family(project.folder / "exports/L1/model.onnx"), 1)
    with pytest.raises(UserError, match="may run its author's code"):
        find_family("models/export/L1/model.pt2")


def test_a_predictor_takes_a_family_and_names_of_engines(project):
    image = RNG.integers(0, 256, (40, 31, 3), np.uint8)
    expected = Predictor(project.trained, 1)(image)
    for model, engine, name in (
        (project.trained, "torch", "torch"),
        (project.trained, "auto", "torch"),
        (project.family, "openvino", "openvino"),
        (find_family(project.folder / "train"), None, "torch"),
    ):
        predictor = Predictor(model, 1, engine=engine)
        assert predictor.engine.name == name
        np.testing.assert_allclose(predictor(image), expected, atol=1e-5)
    mean = Predictor(as_family(project.trained), heads={1: 1, 2: 3})
    np.testing.assert_allclose(mean(image), Predictor(project.trained, heads={1: 1, 2: 3})(image), atol=1e-5)


def test_older_models_are_families_too(project, monkeypatch):
    monkeypatch.setattr("unetpp.engines.family.read_about", lambda _: None)  # as of a model.pt
    family = find_family(project.folder / "train")
    assert isinstance(family, Family)
    assert family.engines(2) == find_family(project.folder / "train").engines(2)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8"])
def test_a_prediction_by_an_export_imports_its_runtime_and_no_other_library(project, engine):
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import numpy as np, unetpp\n"
        "from unetpp.images.decode import decode_image\n"
        "predictor = unetpp.Predictor(unetpp.find_family(sys.argv[1]), engine=sys.argv[2])\n"
        "print(predictor.mask(np.zeros((40, 50, 3), np.uint8)).shape)\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))\n"
    )
    folder = str(project.folder / "exports/L1")
    done = subprocess.run(
        [sys.executable, "-c", code, folder, engine], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr
    shape, found = done.stdout.splitlines()
    assert shape == "(40, 50)"
    runtime = ENGINES[engine].runtime
    # `packaging` is OpenVINO's own; Pillow is for files.
    assert set(eval(found)) <= {"numpy", "unetpp", "PIL", runtime} | ({"packaging"} if runtime == "openvino" else set())


def test_threads_of_a_host_share_an_engine(project):
    from concurrent.futures import ThreadPoolExecutor

    images = [RNG.random((1, 3, 20 + number, 30), np.float32) for number in range(6)]
    for name in ("onnxruntime", "openvino", "torch"):
        engine = open_engine(project.family, 1, name)
        expected = [engine(image) for image in images]
        with ThreadPoolExecutor(3) as pool:
            for found, one in zip(pool.map(engine, images), expected, strict=True):
                np.testing.assert_allclose(found, one, atol=1e-6)


def test_the_table_of_bench_has_a_row_for_each_engine(project, capsys):
    from pipelines.bench import bench

    folder: Path = project.folder
    bench(str(folder / "train"), 1, 32, 2, folder / "exports", folder / "engines.json")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:-1]] == [["L1", name] for name in project.family.engines(1)]
    assert lines[0].startswith("images of 32 x 32, batch 2")
    points = {line.split()[1]: line.split()[2] for line in lines[2:-1]}
    assert points["openvino"] == "-0.04"
    assert all(float(line.split()[-1]) > 30 for line in lines[2:-1])
