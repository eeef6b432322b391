"""A project that was moved or copied, and an experiment in a folder that DVC deletes: whose registry it is."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.doctor import _mlflow
from pipelines.registry import mlflow_store, read_back, runs
from pipelines.registry.lineage import show_lineage
from pipelines.registry.load import load_registered
from tests.pipelines.registry.family import NAME, register, write_stages
from unetpp.errors import UserError

ROOT = Path(__file__).parents[3]


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def copy(home, tmp_path, monkeypatch):
    """A copy of a project with a registered family; the working directory, and no setting from outside."""
    shutil.copytree(home[0], tmp_path / "a copy")
    monkeypatch.chdir(tmp_path / "a copy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    # What a clean process predicts is tested elsewhere.
    monkeypatch.setattr(read_back, "check_in_clean_process", lambda *_: {})
    return tmp_path / "a copy"


def test_a_copy_never_writes_into_its_original_and_a_moved_project_never_into_its_old_folder(
    home, copy, tmp_path, capsys, monkeypatch
):
    original, models = files(home[0]), len(list((copy / "mlruns/1/models").iterdir()))
    assert load_registered(f"models:/{NAME}@L2").depths == (1, 2)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"{copy}/mlflow.db: this project was {home[0]} before" in told
    assert (copy / "mlflow.db.before-move").is_file()
    register(write_stages(tmp_path / "second run", 1), uri=of(copy))
    assert files(home[0]) == original
    assert "this project was" not in capsys.readouterr().err

    moved = tmp_path / "moved"
    copy.rename(moved)
    monkeypatch.chdir(moved)
    found = register(write_stages(tmp_path / "third run", 2), uri=of(moved))
    assert not copy.exists()
    for version in (*range(1, 5), *found["versions"].values()):  # those of before too
        load_registered(f"models:/{NAME}/{version}")
    assert "model.safetensors sha256" in show_lineage(f"{NAME}/1", of(moved))
    assert not _mlflow().advice
    assert len(list((moved / "mlruns/1/models").iterdir())) == models + 4


def test_a_database_that_was_copied_without_its_artifacts_says_so_and_leaves_the_original_alone(home, copy):
    shutil.rmtree(copy / "mlruns")
    original = files(home[0])
    with pytest.raises(UserError, match=rf"found no files of its run .* in {copy}/mlruns/1/.*restore the mlruns/"):
        show_lineage(NAME, of(copy))
    with pytest.raises(UserError, match=rf"no such file in {copy}/mlruns/1/.*restore the mlruns/"):
        load_registered(f"models:/{NAME}@L1")
    finding = _mlflow()
    assert re.search(rf"the artifacts of .*{NAME}/1, {NAME}/2.* are not there", finding.found)
    assert finding.advice
    assert files(home[0]) == original


def test_artifacts_that_lie_elsewhere_on_purpose_stay_there(home, copy, tmp_path):
    (tmp_path / "large disk").mkdir()
    (copy / "mlruns").rename(tmp_path / "large disk/mlruns")
    code = (
        "import sqlite3, sys\n"
        "from pipelines.storage.artifact_paths import COLUMNS\n"
        "with sqlite3.connect('mlflow.db') as database:\n"
        "    for table, column in COLUMNS:\n"
        "        database.execute(f'UPDATE {table} SET {column} = replace({column}, ?, ?)', sys.argv[1:])\n"
    )
    subprocess.run([sys.executable, "-c", code, home[0], tmp_path / "large disk"], check=True, env=with_code())
    load_registered(f"models:/{NAME}@L1")
    assert not (copy / "mlruns").exists()


def with_code() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_artifacts_lie_beside_the_database_whatever_folder_the_command_runs_in(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    client = mlflow_store.connect(of(tmp_path / "store"))
    assert client.get_experiment("0").artifact_location == str(tmp_path / "store/mlruns/0")
    number = runs.experiment_id(client, "tests")
    assert client.get_experiment(number).artifact_location == str(tmp_path / f"store/mlruns/{number}")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "place"), [("--temp", "."), pytest.param("--queue", "..", marks=pytest.mark.nightly)])
def test_an_experiment_in_a_folder_that_dvc_deletes_registers_in_the_projects_own_store(
    tmp_path, monkeypatch, how, place
):
    """The URI is what stage register asks for; a project is a repository, or a folder of one."""
    project = tmp_path / "a repository/a project"
    project.mkdir(parents=True)
    code = "import pathlib; from pipelines.registry.mlflow_store import *; "
    code += f"pathlib.Path('{tmp_path}/uri').write_text(tracking_uri() + ' ' + tracking_uri('sqlite:///other.db'))"
    stages = {"register": {"cmd": f'"{sys.executable}" -c "{code}"', "params": ["number"]}}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (project / "params.yaml").write_text("number: 1\n")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "init", "-q", place],
        [*dvc, "init", "-q", *(["--subdir"] if place == ".." else [])],
        ["git", "add", "-A", "."],
        ["git", *identity, "commit", "-qm", "all"],
        [*dvc, "exp", "run", "-q", how, "-S", "number=2"],
        *([[*dvc, "exp", "run", "-q", "--run-all"]] if how == "--queue" else []),
    ):
        subprocess.run(command, cwd=project, check=True, env=with_code(), stdout=subprocess.DEVNULL)
    found = (tmp_path / "uri").read_text()
    assert found == f"sqlite:///{project}/mlflow.db sqlite:///{project}/other.db"
