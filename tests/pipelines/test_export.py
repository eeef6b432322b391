"""Laws of the export stage, and of the snippets in docs/exports.md."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import export as stage
from pipelines.core.sections.delivery import Export
from pipelines.predict import predict
from pipelines.prediction.opening import find_model
from unetpp.data.arrow_split import SplitWriter
from unetpp.data.manifest import Manifest, SplitFacts
from unetpp.engines.torch_engine import TorchEngine
from unetpp.errors import UserError, to_install
from unetpp.export.verification import Comparison, Verification
from unetpp.files import sha256
from unetpp.models.model_file import Trained
from unetpp.network.model import NestedUNet
from unetpp.offline import TELEMETRY_OFF

ROOT = Path(__file__).parents[2]
SETTINGS = Export(formats=("pt2", "onnx", "onnx-int8"), opset=20, calibration_images=3, tolerance=1e-4)
pytestmark = pytest.mark.slow  # an export is several programs, each in a process of its own
FILES = ("model.safetensors", "model.pt2", "model.onnx", "model-int8.onnx")


def write_prepared(folder: Path) -> Path:
    """Val and test splits of bright squares on dark ground, of two sizes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("val", "test"):
        with SplitWriter(folder / f"{name}.arrow") as writer:
            for index, (height, width) in enumerate([(16, 16), (21, 14), (16, 16), (16, 16)]):
                mask = np.zeros((height, width), np.uint8)
                mask[2:9, 3:10] = 1
                image = (mask[..., None] * 100 + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)
                writer.add(f"{name}_{index}", "a", image, mask)
    splits = {name: SplitFacts(4, sha256(folder / f"{name}.arrow")) for name in ("val", "test")}
    Manifest(size=None, channels=3, num_classes=1, splits=splits).write(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A trained network, prepared data, and all that the stage writes of them in the folder models/export."""
    folder = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    trained = Trained(NestedUNet((4, 6)).eval(), None, {"classes": ["nucleus"]})
    (folder / "models/train").mkdir(parents=True)
    trained.save(folder / "models/train/model.safetensors")
    prepared = write_prepared(folder / "prepared")
    result = stage.run(folder / "models/train", prepared, folder / "models/export", SETTINGS)
    return SimpleNamespace(
        folder=folder, trained=trained, prepared=prepared, exports=folder / "models/export", result=result
    )


def test_every_file_is_listed_with_its_hash_its_size_and_its_difference(made):
    said = json.loads((made.exports / "exports.json").read_text())
    assert said == made.result
    assert (said["schema"], said["left_out"], said["tolerance"]) == (1, [], 1e-4)
    assert [(one["depth"], one["format"], one["precision"], one["opset"]) for one in said["exports"]] == [
        ("L1", "safetensors", "fp32", None),
        ("L1", "pt2", "fp32", None),
        ("L1", "onnx", "fp32", 20),
        ("L1", "onnx-int8", "int8", 20),
    ]
    for one in said["exports"]:
        content = (made.exports / one["file"]).read_bytes()
        assert (one["sha256"], one["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
        if one["precision"] == "fp32":
            assert one["max_difference"] < 1e-5
        else:
            assert 0 < one["max_difference"] < 0.5
    sums = dict(line.split("  ")[::-1] for line in (made.exports / "SHA256SUMS").read_text().splitlines())
    found = {path.relative_to(made.exports).as_posix(): path for path in made.exports.rglob("*") if path.is_file()}
    assert set(sums) == set(found) - {"SHA256SUMS", ".unetpp"} == {f"L1/{name}" for name in FILES} | {"exports.json"}
    assert all(hashlib.sha256(found[name].read_bytes()).hexdigest() == digest for name, digest in sums.items())


def test_no_file_tells_where_it_was_made(made):
    for name in FILES:
        content = (made.exports / "L1" / name).read_bytes()
        assert str(ROOT).encode() not in content
        assert str(made.folder).encode() not in content


def test_int8_is_a_graph_of_integers_with_a_scale_a_channel(made):
    import onnx

    graph = onnx.load(made.exports / "L1/model-int8.onnx").graph
    scales = {one.name: one for one in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in scales]
    of_weights = [node for node in weights if len(scales[node.input[0]].dims) == 4]
    assert len(of_weights) == 6  # two convolutions in each of three nodes; the head stays
    assert all(scales[node.input[1]].dims[0] == scales[node.input[0]].dims[0] for node in of_weights)


def test_export_that_differs_fails_with_the_numbers_and_leaves_the_old_one(made, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("old")
    with pytest.raises(UserError, match=r"L1/model\.safetensors in torch by \d\S+; expected at most export\.tolerance"):
        stage.export(made.trained, tmp_path / "out", [], 20, tolerance=1e-12)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_every_file_that_differs_is_named():
    written = [stage.Exported(1, "onnx"), stage.Exported(2, "onnx"), stage.Exported(1, "onnx-int8")]
    good = [Comparison("L1/model.onnx", "onnxruntime", 1e-4), Comparison("L1/model-int8.onnx", "openvino", 0.3)]
    stage.check(written, good, 1e-4)
    wrong = [
        Comparison("L2/model.onnx", "openvino", 2e-4),
        Comparison("L1/model-int8.onnx", "openvino", float("inf")),
        Comparison("L1/model.onnx", "openvino", float("nan")),
    ]
    with pytest.raises(UserError, match=r"openvino by 0\.0002; L1/model-int8\.onnx in openvino by inf; .* by nan;"):
        stage.check(written, good + wrong, 1e-4)


def test_process_that_compares_says_why_it_ended(made, tmp_path):
    with Verification(tmp_path, made.trained) as verification:
        verification.add({"L1/model.onnx": 1})
        with pytest.raises(RuntimeError, match=r"failed with exit code 1:[\s\S]*L1/model\.onnx: no such file"):
            verification.results()


def test_formats_whose_packages_are_missing_are_left_out_and_said(monkeypatch):
    assert stage.possible(["onnx-int8", "onnx"]) == (["safetensors", "onnx", "onnx-int8"], [])
    monkeypatch.setattr(stage, "missing", lambda runtime: runtime == "onnxruntime")
    formats, left_out = stage.possible(["pt2", "onnx", "onnx-int8"])
    assert formats == ["safetensors", "pt2", "onnx"]
    assert [line.partition(";")[0] for line in left_out] == [
        f"skipped onnx-int8: onnxruntime is not installed: {to_install('exports')}"
    ]
    monkeypatch.setattr(stage, "missing_for_onnx", lambda: ["onnx", "onnxscript"])
    formats, left_out = stage.possible(["pt2", "onnx", "onnx-int8"])
    assert formats == ["safetensors", "pt2"]
    assert left_out[0].startswith("skipped onnx: onnx and onnxscript is not installed")


def test_int8_needs_images_of_val(made, tmp_path):
    images = stage.calibration_images(made.prepared, 2)
    assert [image.shape for image in images] == [(3, 16, 16), (3, 16, 16)]  # the first and the last
    assert images[0].dtype == np.float32
    assert len(stage.calibration_images(made.prepared, 100)) == 4
    with SplitWriter(tmp_path / "val.arrow"):
        pass
    splits = {"val": SplitFacts(0, sha256(tmp_path / "val.arrow"))}
    Manifest(size=None, channels=3, num_classes=1, splits=splits).write(tmp_path)
    with pytest.raises(UserError, match=r"val\.arrow: found no image"):
        stage.calibration_images(tmp_path, 2)
    with pytest.raises(UserError, match="set --prepared"):
        stage.export_model("models/train", tmp_path, None, ["onnx", "onnx-int8"], 20, 1e-4, None)


def test_exported_models_predict_the_masks_of_the_network(made, tmp_path):
    image = (np.random.default_rng(0).random((20, 27, 3)) * 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)

    def mask(model: Path) -> np.ndarray:
        predict([str(tmp_path / "a.png")], str(model), None, tmp_path / "out")
        found = cv2.imread(str(tmp_path / "out/a.png"), cv2.IMREAD_UNCHANGED)
        assert found is not None
        return found

    expected = mask(made.folder / "models/train")
    for name in ("", "model.safetensors", "model.onnx", "model-int8.onnx"):
        found = mask(made.exports / "L1" / name)
        assert (found != expected).mean() < (0.2 if "int8" in name else 0.01)
    with pytest.raises(UserError, match="may run its author's code: use its folder"):
        mask(made.exports / "L1/model.pt2")
    with pytest.raises(UserError, match="an exported file is a single depth"):
        predict([str(tmp_path / "a.png")], str(made.exports / "L1/model.onnx"), 1, tmp_path / "out")


def test_an_exported_file_is_predicted_by_without_torch(made, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), (np.random.default_rng(0).random((20, 27, 3)) * 255).astype(np.uint8))
    code = (
        "import sys\n"
        "for name in 'torch mlflow ray pydantic boto3 cv2 onnx'.split():\n"
        "    sys.modules[name] = None\n"  # an import of it fails
        "from pipelines.cli import main\n"
        "main()\n"
    )
    for name in ("L1/model.onnx", "L1/model-int8.onnx"):
        arguments = ["predict", "a.png", "--model", str(made.exports / name), "--out", "out", "--overwrite"]
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "wrote 1 masks" in done.stdout


def test_an_exported_file_is_predicted_by_after_its_sum_was_compared(made, tmp_path):
    shutil.copytree(made.exports, tmp_path / "exports")
    file = tmp_path / "exports/L1/model.onnx"
    find_model(str(file))
    shutil.copytree(file.parent, tmp_path / "alone/L1")
    with pytest.raises(UserError, match=r"exports\.json: no such file; model\.onnx is checked against"):
        find_model(str(tmp_path / "alone/L1/model.onnx"))
    content = bytearray(file.read_bytes())
    content[-20] ^= 4
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.onnx: found the sha256 .*it is damaged"):
        find_model(str(file))
    shutil.move(file, file.with_name("other.onnx"))
    with pytest.raises(UserError, match=r"exports\.json: it does not list L1/other\.onnx"):
        find_model(str(file.with_name("other.onnx")))


def test_snippets_of_the_docs_run_and_agree(made, monkeypatch):
    """Each block of "Loading" ends with `probs`, of one image and one depth; those of "Without torch" with a mask."""
    loading, _, programs = (ROOT / "docs/exports.md").read_text().partition("## Without torch")
    snippets = re.findall(r"```python\n(.*?)```", loading, re.DOTALL)
    assert len(snippets) == 5
    monkeypatch.chdir(made.folder)
    image = np.random.default_rng(0).random((2, 3, 19, 30), dtype=np.float32)
    found = []
    for snippet in snippets:
        assert len(snippet.strip().splitlines()) <= 6
        names = {"image": image.copy()}
        exec(snippet, names)
        found.append(np.asarray(names["probs"]))
    expected = TorchEngine(made.trained.segmenter(), made.trained.about)(image)
    assert all(np.abs(one - expected).max() < 1e-5 for one in found)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 30, 3), np.uint8)).save("scan.png")
    with_package, alone = re.findall(r"```python\n(.*?)```", programs.replace("/L2", "/L1"), re.DOTALL)
    names = {}
    exec(with_package, names)
    exec(alone.replace("SIZE = (96, 96)", "SIZE = None"), {})
    assert "torch" not in with_package + alone
    assert np.array_equal(names["mask"] * 255, np.asarray(Image.open("mask.png")))


def test_runtimes_call_nobody_and_leave_nothing_in_the_home(made, tmp_path):
    """ONNX Runtime and OpenVINO otherwise write an identifier there and send events when they are imported or used."""
    code = (
        "import sys\n"
        "def refuse(event, values):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'):\n"
        "        raise RuntimeError(event)\n"
        "sys.addaudithook(refuse)\n"
        "import numpy as np\n"
        "from unetpp.engines.runtimes import open_export\n"
        "for runtime in ('onnxruntime', 'openvino'):\n"
        "    print(open_export(sys.argv[1], runtime)(np.zeros((1, 3, 8, 8), np.float32)).shape)\n"
    )
    bare = {key: value for key, value in os.environ.items() if key not in TELEMETRY_OFF and not key.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", code, made.exports / "L1/model.onnx"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=bare | {"HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["(1, 1, 8, 8)"] * 2
    assert list(tmp_path.iterdir()) == []


def test_on_a_full_disk_former_exports_stay_and_the_next_run_completes(made, small_disk):
    """torch's own writer of .pt2 ended the process by SIGABRT there."""
    out = small_disk.folder / "export"
    command = [sys.executable, "-m", "pipelines.cli", "export", "--model", "models/train", "--out", str(out)]
    command += ["--formats", "pt2", "--depth", "1"]

    def run(prefix: list[str], code: int) -> str:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*prefix, *command], cwd=made.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    run([], 0)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (size,) = [len(content) for path, content in before.items() if path.suffix == ".pt2"]
    for free_kib in (0, size // 2**10 // 2):
        with small_disk.full(free_kib) as prefix:
            (line,) = run(prefix, 2).strip().splitlines()
        assert line.startswith(f"error: {out}: the disk or quota is full")
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    run([], 0)
    assert {path.name for path in small_disk.folder.iterdir()} == {"export"}
