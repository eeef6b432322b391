"""A real pipeline in a repository of its own: registered, traced back, and made again from what was recorded."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from pipelines.cli import build_parser
from pipelines.core.files import write_json
from pipelines.registry.lineage import Lineage, rows
from pipelines.registry.reproduce import check_out, compare, stages_to_run
from pipelines.registry.run_log import read_hashes
from tests.clones import Clone, git
from tests.conftest import REPOSITORY
from unetpp import NestedUNet, UserError
from unetpp.files import sha256
from unetpp.models.model_file import Trained

TINY = {
    "ingest": {"synthetic": {"num_images": 24, "size_px": 48, "seed": 1, "masks": "instances"}},
    "search": {"widths": [[4, 6]], "epochs": 1},
    "train": {"epochs": 1, "num_workers": 1, "warmup_epochs": 0},
    "export": {"formats": []},
}


@pytest.mark.slow  # its training has one worker and no Ray
def test_a_registered_version_is_traced_back_and_made_again_bit_for_bit(tmp_path):
    folder = tmp_path / "a project"
    folder.mkdir()
    clone = Clone(folder, TINY)
    clone.run("dvc", "repro")
    commit = git(folder, "rev-parse", "HEAD")

    printed = clone.unetpp("lineage", "unetpp-nuclei@L1")
    hashes = read_hashes(folder / "dvc.lock")
    weights = sha256(next(folder.rglob("mlruns/**/model.safetensors")))
    for expected in (
        "models:/unetpp-nuclei/1, L1 (",
        "data source     synthetic\n",
        f"data/raw md5 {hashes['data/raw']}",
        f"manifest sha256 {sha256(folder / 'data/prepared/manifest.json')}",
        f"reports/prepare/split.csv md5 {hashes['reports/prepare/split.csv']}",
        f"test: sha256 {sha256(folder / 'data/prepared/test.arrow')[:32]}",
        f"params.yaml sha256 {sha256(folder / 'params.yaml')}",
        "epochs=1",
        f"code            {commit}\n",
        f"model.safetensors sha256 {sha256(folder / 'models/train/model.safetensors')}",
        f"model.safetensors sha256 {weights}",
    ):
        assert expected in printed

    # What happens in the folder later does not matter: the run knows what it was made from.
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("epochs: 1", "epochs: 3"))
    shutil.rmtree(folder / "data")
    versions = clone.unetpp("lineage", "models:/unetpp-nuclei/1")
    printed = clone.run("unetpp", "reproduce", "unetpp-nuclei@L1", "--out", "again", "--run")
    assert "running prepare, search, train, " in printed.replace("\n", " ")  # raw data came out of the cache
    assert "equal     weights: " in printed
    assert "equal     metrics of L1: " in printed
    assert "equal     data/prepared: " in printed
    assert "DIFFERS" not in printed
    assert sha256(folder / "again/models/train/model.safetensors") == sha256(folder / "models/train/model.safetensors")
    assert clone.unetpp("lineage", "models:/unetpp-nuclei/1") == versions  # nothing moved in the registry
    assert "not empty" in clone.unetpp("reproduce", "unetpp-nuclei@L1", "--out", "again", expect=2)


class Run:
    """Of MLflow's run what a lineage asks."""

    def __init__(self, **tags: str):
        self.info = type("Info", (), {"run_id": "abc", "run_name": "a run", "status": "FINISHED"})
        self.data = type("Data", (), {"params": {"ingest.kind": "folder", "ingest.location": "/scans"}, "tags": tags})
        self.inputs = None


def recorded(tmp_path: Path, commit: str, **tags: str) -> Lineage:
    folder = tmp_path / "recorded"
    (folder / "pipeline").mkdir(parents=True, exist_ok=True)
    run = Run(**{"mlflow.source.git.commit": commit, "git_dirty": "false"} | tags)
    return Lineage("models:/nuclei/1", [], {"depth": "1"}, run, folder, None)


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with the project's dvc.yaml, params and DVC configuration."""
    folder = tmp_path / "a repository"
    (folder / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", ".dvc/config"):
        shutil.copy(REPOSITORY / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def test_what_was_not_recorded_is_said_and_not_guessed(tmp_path):
    found = rows(recorded(tmp_path, "none"))
    text = "\n".join(f"{what}: {value}" for what, value in found)
    for line in (
        "data source: folder /scans",
        "data, raw: data/raw: not recorded (no dvc.lock in the run)",
        "split: reports/prepare/split.csv: not recorded (no dvc.lock in the run)",
        "params: pipeline/params.yaml: not recorded",
        "code: not recorded",
        "checkpoint: model/model.safetensors: not recorded",
        "environment: pipeline/requirements.lock: not recorded",
    ):
        assert line in text
    assert "initial weights" not in text
    assert ("initial weights", "models:/a/3 sha256 00") in rows(
        recorded(tmp_path, "none", init="models:/a/3 sha256 00")
    )
    gone = Lineage("models:/nuclei/1", [], {}, None, tmp_path, None)
    assert ("run", "deleted") in rows(gone)


def test_code_that_cannot_be_had_is_refused_before_anything_is_made(tmp_path, repository):
    for commit, message in (("none", "no commit was recorded"), ("0" * 40, "git fetch")):
        with pytest.raises(UserError, match=message):
            check_out(recorded(tmp_path, commit), repository, tmp_path / "out")
    with pytest.raises(UserError, match="found no git repository with the commit"):
        check_out(recorded(tmp_path, git(repository, "rev-parse", "HEAD")), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_may_make_it_another_result_is_said_before_anything_runs(tmp_path, repository):
    commit = git(repository, "rev-parse", "HEAD")
    lineage = recorded(tmp_path, commit, git_dirty="true")
    (lineage.folder / "pipeline/params.yaml").write_text("as: recorded\n")
    lock = {"stages": {"ingest": {"cmd": "x", "outs": [{"path": "data/raw", "hash": "md5", "md5": "f" * 32 + ".dir"}]}}}
    (lineage.folder / "pipeline/dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", **lock}))
    (lineage.folder / "pipeline/requirements.lock").write_text("numpy==1.0\nno-such-package==2\n")
    notes = "\n".join(check_out(lineage, repository, tmp_path / "out"))
    assert f"uncommitted changes: commit {commit[:12]} may not contain all of it" in notes
    assert "dvc.yaml was not recorded with the run: using the one in the commit" in notes
    assert "is in no cache or remote: it will be fetched from its source, folder /scans" in notes
    assert "packages whose versions differ from those of the run: numpy" in notes
    assert "no-such-package" not in notes
    assert (tmp_path / "out/params.yaml").read_text() == "as: recorded\n"
    assert not (tmp_path / "out/.dvc/config.local").exists()


def test_all_that_evaluate_needs_is_run_and_nothing_that_registers(repository):
    stages = stages_to_run(repository)
    assert stages[0] == "ingest"
    assert stages[-1] == "evaluate"
    assert "register" not in stages
    assert stages.index("prepare") < stages.index("search") < stages.index("train")
    (repository / "data/raw").mkdir(parents=True)
    assert stages_to_run(repository) == stages[1:]


def test_a_comparison_names_what_differs_and_by_how_much(tmp_path):
    lineage, project = recorded(tmp_path, "a" * 40), tmp_path / "project"
    torch.manual_seed(0)
    network = NestedUNet((4, 6)).eval()
    for path in (lineage.folder / "model", project / "models/train", lineage.folder / "report"):
        path.mkdir(parents=True)
    Trained(network, None).save(lineage.folder / "model/model.safetensors")
    with torch.no_grad():
        network.get_parameter("heads.1.bias").add_(0.25)
    Trained(network, None).save(project / "models/train/model.safetensors")
    for path, iou in ((lineage.folder / "report/report.json", 0.8), (project / "reports/evaluate/report.json", 0.7)):
        write_json(path, {"depths": {"L1": {"iou_image": iou, "dice_image": 0.9, "latency_ms": iou}}})
    for path, digest in ((lineage.folder / "pipeline/dvc.lock", "a"), (project / "dvc.lock", "b")):
        outs = [{"path": "data/raw", "md5": "same"}, {"path": "data/prepared", "md5": digest}]
        path.write_text(yaml.safe_dump({"stages": {"one": {"outs": outs}}}))
    found = {one.what: (one.equal, one.detail) for one in compare(lineage, project)}
    assert found["data/raw"] == (True, "md5 same")
    assert found["data/prepared"] == (False, "md5 b, then a")
    assert found["reports/prepare/split.csv"] == (None, "its hash was not recorded")
    assert found["weights"] == (False, "1 of 44 tensors differ, by up to 0.25")
    assert found["metrics of L1"] == (False, "iou_image 0.7, then 0.8")


def test_a_file_that_is_no_dvc_lock_is_refused_by_name(tmp_path):
    (tmp_path / "dvc.lock").write_text("stages: 3")
    with pytest.raises(UserError, match=r"dvc\.lock: not a dvc\.lock"):
        read_hashes(tmp_path / "dvc.lock")


def test_the_commands_say_how_a_model_is_named(capsys):
    for command in ("lineage", "reproduce"):
        with pytest.raises(SystemExit) as end:
            build_parser().parse_args([command, "--help"])
        assert end.value.code == 0
        assert "NAME, NAME@ALIAS or NAME/VERSION" in capsys.readouterr().out
