"""No stage and no command takes the place of a file that it did not write: refused before any work is done."""

import importlib
import re
import shlex
import sys

import pytest
import yaml

from pipelines import cli
from pipelines.core.command import run_command
from tests.conftest import REPOSITORY

# Each output of each stage and command in the way of one of these; what is read does not exist, and is not asked for.
MINE = ("notes.txt", "report.json", "curves.csv", "search.csv")
STAGES = (
    "ingest --out mine --cache cache",
    "prepare --raw raw --out mine --split split.csv --metrics data.json",
    "prepare --raw raw --out out --split mine/notes.txt --metrics data.json",
    "prepare --raw raw --out out --split split.csv --metrics mine/notes.txt",
    "search --prepared prepared --runs runs --out mine --reports reports",
    "search --prepared prepared --runs runs --out out --reports mine",
    "train --prepared prepared --architecture a.yaml --runs runs --out mine --reports reports",
    "train --prepared prepared --architecture a.yaml --runs runs --out out --reports mine",
    "export --model model --prepared prepared --out mine",
    "evaluate --prepared prepared --model model --out mine",
    "register --prepared p --model m --curves c.csv --evaluation e --out mine/notes.txt",
    "pages search --of params.yaml --out mine/notes.txt",
)
COMMANDS = (
    "export --out mine",
    "export --out mine/notes.txt --overwrite",
    "compare a b --out mine/notes.txt",
    "compare a b --out mine --overwrite",
    "job pack train --out mine/notes.txt",
    "reproduce model@L1 --out mine",
    "reproduce model@L1 --out mine/notes.txt",
)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of a person's own, in a folder of a project."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    (tmp_path / "mine").mkdir()
    for name in MINE:
        (tmp_path / "mine" / name).write_text("by hand")
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "mine"


@pytest.mark.parametrize("command", [*STAGES, *(f"unetpp {one}" for one in COMMANDS)])
def test_a_persons_own_files_are_left_as_they_are(mine, monkeypatch, capsys, command):
    name, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    module = cli if name == "unetpp" else importlib.import_module(f"pipelines.{name}" + ".__main__" * (name == "pages"))
    with pytest.raises(SystemExit) as ended:
        run_command(module.main)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "mine" in said or "store" in said  # a store that is not there is asked for first
    assert {path.name: path.read_text() for path in mine.iterdir()} == dict.fromkeys(MINE, "by hand")
    assert {path.name for path in mine.parent.iterdir()} == {"mine", "params.yaml", "dvc.yaml"}


def test_every_stage_checks_its_outputs_and_every_temporary_folder_is_cleared_after_a_kill():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for stage in stages:
        path = REPOSITORY / "pipelines" / ("pages/__main__.py" if stage == "pages" else f"{stage}.py")
        assert "check_outputs(" in path.read_text(), path
    home = REPOSITORY / "pipelines/core/temporary_folders.py"
    makes = re.compile(r"mkdtemp|mkstemp|TemporaryDirectory|NamedTemporaryFile")
    using = [path for path in (REPOSITORY / "pipelines").rglob("*.py") if makes.search(path.read_text())]
    assert set(using) <= {home, REPOSITORY / "pipelines/served/images.py"}
