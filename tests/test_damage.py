"""What is read is what was written, or it is refused in one line by its name; and nothing that is read is run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import unetpp
from pipelines import served, train
from pipelines.cluster import job_package
from pipelines.core.command import run_command
from pipelines.core.params import load_params
from pipelines.evaluation.depth_table import summary
from pipelines.evaluation.scored import read_scored
from pipelines.evaluation.subject import Subject, read_groups
from pipelines.export import calibration_images
from pipelines.pages.__main__ import PAGES
from pipelines.prediction import opening
from pipelines.register import read_family
from pipelines.registry.find_report import Found, read_evaluation
from pipelines.registry.live_log import read_unlogged
from pipelines.registry.run_log import Inputs, read_hashes
from pipelines.storage import http_download, node_cache, stage_paths
from pipelines.training.architecture import read_architecture
from tests.canary import Canary
from tests.pipelines.registry.family import settings, write_stages
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import read_manifest
from unetpp.engines.runtimes import open_export
from unetpp.errors import UserError
from unetpp.models.listing import check_export, read_exports
from unetpp.models.model_file import load_model
from unetpp.training.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint

FOREIGN = {
    "empty": b"",
    "deep": b"[" * 100_000,
    "utf16": '{"widths": [4, 6]}'.encode("utf-16"),
    "list": b"[1, 2]",
    "bytes": bytes(range(256)),
    "another's": b'{"colour": 1}',
}
READERS: dict[str, Any] = {  # by the file that they read
    "params.yaml": load_params,
    "architecture.yaml": read_architecture,
    "manifest.json": lambda path: read_manifest(path.parent),
    "report.json": lambda path: read_evaluation(Found(path.parent)),
    "evaluate/report.json": lambda path: summary(path.parent, path.parents[1] / "register/versions.json"),
    "fingerprint.json": lambda path: PAGES["data"](path.parent),
    "search/page.json": PAGES["search"],
    "page.json": lambda path: PAGES["depths"](path.parent),
    "exports.json": lambda path: read_exports(path.parent),
    "L1/exports.json": lambda path: check_export(path.parent / "L1/model.onnx"),
    "dvc.lock": read_hashes,
    "dvc.yaml": lambda _path: stage_paths.stage_arguments("train"),
    "job.json": lambda _path: job_package._run_stage(),
    "split.csv": lambda path: read_groups(path.parent, ["a"]),
    "images.csv": read_scored,
    "unlogged.jsonl": lambda path: read_unlogged(path, "x") or read_unlogged(Path("none"), "x") or _refuse(path),
    "test.arrow": Split,
}


def _refuse(path: Path):
    raise UserError(f"{path}: no line of this training")


def test_a_page_is_not_made_of_images_of_another(tmp_path):
    keys = ("report", "rows", "samples", "extremes", "shown", "rule", "provenance")
    (tmp_path / "page.json").write_text(json.dumps({key: {} for key in keys}))
    for content in FOREIGN.values():
        (tmp_path / "shown.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"^[^\n]*shown\.npz: does not match page\.json[^\n]*$"):
            PAGES["depths"](tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_files_of_others_are_refused_in_a_line_by_their_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for kind, content in FOREIGN.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=path.name) as refused:
            READERS[name](path)
        # Of params.yaml each key has its line.
        assert "\n" not in str(refused.value) or (name, kind) == ("params.yaml", "another's")
    path.unlink()
    path.mkdir()
    if name != "unlogged.jsonl":  # a folder is no spool
        with pytest.raises(UserError, match=rf"^[^\n]*{path.name}[^\n]*$"):
            READERS[name](path)


def test_what_a_cache_or_a_checkpoint_notes_beside_a_file_is_passed_over_where_it_is_none(tmp_path):
    save_checkpoint(tmp_path, {"epoch": 1})
    (tmp_path / "a.arrow").write_bytes(b"")
    for content in FOREIGN.values():
        (tmp_path / "a.json").write_bytes(content)
        assert not node_cache._is_sealed(tmp_path / "a.arrow")
        assert http_download._read_facts(tmp_path / "a.zip") in ({}, {"colour": 1})
        (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match="torn checkpoint"):
            load_checkpoint(tmp_path)


def test_a_command_ends_with_2_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes("a: 1".encode("utf-16"))
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: print(load_params()))
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: params.yaml: found UTF-16 text; expected text in UTF-8: run from the project's folder, whose "
        "params.yaml has sections such as ingest and train\n"
    )


def flip(file: Path, place: int = -20) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


@pytest.fixture
def stages(tmp_path) -> Inputs:
    folder = write_stages(tmp_path / "stages")
    return Inputs(
        prepared=folder / "prepared",
        model=folder / "model",
        curves=folder / "train/curves.csv",
        evaluation=folder / "evaluation",
        exports=folder / "exports",
    )


def test_what_was_measured_or_exported_of_another_model_is_not_registered(stages):
    assert read_family(stages, settings()).trained.depths == (1, 2)
    flip(stages.prepared / "test.arrow")
    with pytest.raises(UserError, match=r"test\.arrow: found the sha256 .*manifest\.json: run `dvc repro prepare`"):
        read_family(stages, settings())
    flip(stages.prepared / "test.arrow")
    flip(stages.exports / "L2/model.onnx", 0)
    with pytest.raises(UserError, match=r"L2/model\.onnx: found the sha256 .*export again"):
        read_family(stages, settings())
    flip(stages.exports / "L2/model.onnx", 0)

    report = stages.evaluation / "report.json"
    said = json.loads(report.read_text())
    report.write_text(json.dumps(said | {"test": {"sha256": "0" * 64}}))
    with pytest.raises(UserError, match=r"report\.json: test: .*measured on other test images: run `dvc repro"):
        read_family(stages, settings())
    report.write_text(json.dumps(said))

    trained = load_model(stages.model)
    next(trained.network.parameters()).data += 1
    trained.save(stages.model / "model.safetensors")  # whole, and another one
    with pytest.raises(UserError, match=r"report\.json: model_sha256: .*run `dvc repro evaluate`"):
        read_family(stages, settings())
    flip(stages.model / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: found the sha256 .*damaged"):
        read_family(stages, settings())


def test_exports_of_another_model_are_not_measured(stages):
    with pytest.raises(UserError, match=r"exports\.json: model_sha256: .*it was exported from another model"):
        read_exports(stages.exports, "0" * 64)


def test_training_evaluation_and_calibration_begin_with_the_data_of_the_manifest(
    stages, tmp_path, repository, monkeypatch
):
    monkeypatch.setattr("pipelines.training.spec.code_hash", lambda _module: "code")  # which takes seconds
    params, manifest = load_params(repository / "params.yaml"), read_manifest(stages.prepared)
    (tmp_path / "architecture.yaml").write_text("widths: [4, 6]\nparams: {}\n")
    paths = [tmp_path / one for one in ("architecture.yaml", "runs", "out", "reports")]
    for split, begin in (
        ("train", lambda: train.train(params, stages.prepared, *paths)),
        ("val", lambda: train.train(params, stages.prepared, *paths)),
        ("train", lambda: node_cache.share(params, stages.prepared, manifest)),  # as search and several workers do
        ("val", lambda: Subject.open(stages.prepared, stages.model)),
        ("val", lambda: calibration_images(stages.prepared, 3)),
        ("test", lambda: Subject.open(stages.prepared, stages.model)),
    ):
        flip(stages.prepared / f"{split}.arrow")
        with pytest.raises(UserError, match=rf"{split}\.arrow: found the sha256 .*run `dvc repro prepare`"):
            begin()
        flip(stages.prepared / f"{split}.arrow")


def _arrow_with(canary: Canary, path: Path) -> None:
    """An Arrow file of an extension type that pyarrow of before unpickled."""
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": dict(canary.forms())["pickle"],
    }
    schema = pa.schema([pa.field("id", pa.string(), metadata=metadata)])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(["a"])], schema=schema))


def test_no_file_that_is_loaded_runs_what_is_in_it(tmp_path):
    canary = Canary(tmp_path)
    for number, (kind, content) in enumerate(canary.forms()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in (
            "model.safetensors",
            "model.pt",
            "model.onnx",
            "model.pt2",
            "config.json",
            "test.arrow",
            "MLmodel",
        ):
            (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        entry = {"file": f"{number}/model.onnx", "sha256": digest}
        (tmp_path / "exports.json").write_text(json.dumps({"exports": [entry]}))
        (folder / "manifest.json").write_text(
            json.dumps({"epoch": 1, "step": 0, "file": "state.pt", "size": len(content), "sha256": digest})
        )
        (folder / "state.pt").write_bytes(content)
        (folder / "SHA256SUMS").write_text(f"{digest}  MLmodel\n{digest}  model.safetensors\n")
        reads: list[tuple[str, Any]] = [
            *((name, unetpp.load) for name in ("model.safetensors", "model.pt", "model.onnx", "model.pt2", "")),
            *((name, lambda path: opening.find_model(str(path))) for name in ("model.onnx", "model.pt2")),
            ("model.pt2", open_export),
            ("model.onnx", open_export),
            ("model.onnx", lambda path: open_export(path, "openvino")),
            ("test.arrow", Split),
            ("", served._load_pyfunc),
            ("", load_checkpoint),
        ]
        for name, read in reads:
            with pytest.raises(ValueError, match=str(folder)) as refused:
                read(folder / name)
            assert canary.alive, (kind, name, refused.value)
    _arrow_with(canary, tmp_path / "test.arrow")
    with pytest.raises(UserError, match="found the columns"):
        Split(tmp_path / "test.arrow")
    assert canary.alive
