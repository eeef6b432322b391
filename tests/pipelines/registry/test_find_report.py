"""Laws of finding an evaluation: every way to name one leads to its files, and a wrong name is told what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.evaluation.compare import compare
from pipelines.registry import find_report, mlflow_store, runs
from pipelines.registry.find_report import FILES, find_evaluation, open_page, read_evaluation
from pipelines.trying.subject import find_subject
from tests.pages import Outline
from tests.pipelines.registry.family import NAME, SENTENCE
from unetpp.errors import UserError


def write_files(folder: Path, what: str = "of the folder") -> Path:
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(f"{name} {what}")
    return folder


def run(*arguments: str, folder: Path) -> None:
    subprocess.run(arguments, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory without git."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["project", "project/reports", "project/reports/evaluate/report.html"])
def test_a_project_its_reports_and_the_page_itself_name_the_folder(elsewhere, name):
    folder = write_files(elsewhere / "project/reports/evaluate")
    assert find_evaluation(str(elsewhere / name)).folder.samefile(folder)


def test_a_wrong_name_is_told_what_was_expected_and_what_there_is(elsewhere):
    (elsewhere / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"empty: found no report.json in this folder; expected .* `dvc repro evaluate`"
    ):
        find_evaluation("empty")
    with pytest.raises(UserError, match=r"nothing: no such folder, git revision or DVC experiment.*There is none here"):
        find_evaluation("nothing")
    write_files(elsewhere / "reports/evaluate")
    with pytest.raises(UserError, match=r"Available here: the folder reports/evaluate"):
        find_evaluation("--upload-pack=touch x")


@pytest.mark.parametrize("name", ["models:/a@b", "0" * 32, f"runs:/{'0' * 32}"])
def test_where_there_is_no_store_none_is_made(elsewhere, name):
    with pytest.raises(UserError, match=r"mlflow.db: found no MLflow store; `dvc repro register` creates it"):
        find_evaluation(name)
    assert not list(elsewhere.iterdir())


def test_the_address_is_printed_and_a_browser_opened_where_there_is_one(elsewhere, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(find_report.webbrowser, "open", opened.append)
    page = write_files(elsewhere / "a folder") / "report.html"
    monkeypatch.setenv("DISPLAY", ":0")
    open_page(page, browser=False)
    assert opened == []
    open_page(page, browser=True)
    assert opened == [page.as_uri()]
    assert capsys.readouterr().out == f"{page.as_uri()}\n" * 2
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    open_page(page, browser=True)
    assert len(opened) == 1
    with pytest.raises(UserError, match="no such file"):
        open_page(elsewhere / "missing.html", browser=True)


@pytest.mark.slow
def test_a_commit_and_an_experiment_name_what_they_made(elsewhere):
    write_files(elsewhere / "made")
    outs = "".join(f"      - reports/evaluate/{name}\n" for name in FILES)
    (elsewhere / "dvc.yaml").write_text(
        "stages:\n  evaluate:\n    cmd: mkdir -p reports/evaluate && cp made/* reports/evaluate &&"
        " cat params.yaml >> reports/evaluate/report.html\n    params: [seed]\n    outs:\n" + outs
    )
    (elsewhere / "params.yaml").write_text("seed: 1\n")
    (elsewhere / ".gitignore").write_text("/reports/*\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for arguments in (("git", "init", "-q"), ("dvc", "init", "-q"), ("dvc", "repro", "-q"), ("git", "add", "-A")):
        run(*arguments, folder=elsewhere)
    run("git", *identity, "commit", "-qm", "first", folder=elsewhere)
    run("git", *identity, "tag", "v1", folder=elsewhere)
    run("dvc", "exp", "run", "-q", "-n", "tried", "-S", "seed=2", folder=elsewhere)
    for name, seed in (("v1", 1), ("HEAD", 1), ("tried", 2)):
        folder = find_evaluation(name).folder
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        assert (folder / "report.html").read_text() == f"report.html of the folderseed: {seed}\n"
    with pytest.raises(UserError, match="the experiment tried"):
        find_evaluation("untried")
    run("git", "rm", "-q", "-r", "--cached", "dvc.lock", folder=elsewhere)
    run("git", *identity, "commit", "-qm", "without outputs", folder=elsewhere)
    with pytest.raises(UserError, match=r"HEAD: commit \w{12} has no reports/evaluate/report.html"):
        find_evaluation("HEAD")


@pytest.fixture
def registry(home, monkeypatch):
    """The registry of a real family, and the run that made it."""
    uri = f"sqlite:///{home[0]}/mlflow.db"
    monkeypatch.chdir(home[0])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow_store.connect(uri), home[1]["run_id"]


@pytest.mark.slow
def test_a_run_a_version_and_an_alias_name_what_was_logged_with_them(registry):
    client, run_id = registry
    names = {run_id: None, f"runs:/{run_id}": None, f"models:/{NAME}@L2": 2, f"models:/{NAME}/1": 1}
    for name, depth in names.items():
        found = find_evaluation(name)
        assert (found.folder / "report.html").read_text() == "<h1>report</h1>"
        assert found.version_depth == depth
    for name, answer in (
        ("0" * 32, rf"no such run with a folder `report`.*the newest runs there are .*{run_id} \({NAME} "),
        (f"models:/{NAME}@L7", f"{NAME} has the aliases L1, L2, champion, recommended and the versions 1, 2"),
        ("models:/cells/1", f"which has .*models:/{NAME}"),
        (f"models:/{NAME}", re.escape("expected models:/NAME@ALIAS")),
    ):
        with pytest.raises(UserError, match=answer):
            find_evaluation(name)
    with runs.open_run(client, runs.experiment_id(client, "other"), "bare", "g") as bare:
        pass
    with pytest.raises(UserError, match="no such run with a folder `report`"):
        find_evaluation(bare.info.run_id)


@pytest.mark.slow
@pytest.mark.usefixtures("registry")
def test_two_versions_of_one_run_are_compared_by_their_depths(tmp_path, monkeypatch, capsys):
    page = tmp_path / "compare.html"
    monkeypatch.setattr(
        sys, "argv", ["unetpp", "compare", f"models:/{NAME}@L1", f"models:/{NAME}@L2", "--out", str(page)]
    )
    cli.main()
    text = capsys.readouterr().out
    assert [line.split()[1:5] for line in text.splitlines() if line.startswith(">")] == [
        ["L1:L2", "0.803", "0.900", "+9.6"]
    ]
    assert "L1:L1" not in text
    assert "L2 of B (registered) against L1 of A (registered): +9.6 IoU points [+9.4, +9.8] on 8 images" in text
    outline = Outline(page.read_text())
    assert "L1 of A, L2 of B" in outline.text
    assert "By IoU, L1 of A compared with L2 of B." in outline.text
    assert "B is better" in outline.text


@pytest.mark.slow
@pytest.mark.usefixtures("registry")
def test_a_version_against_a_whole_evaluation_is_its_depth_against_the_recommended_one(home):
    version = read_evaluation(find_evaluation(f"models:/{NAME}@L2"))
    found = compare(version, read_evaluation(find_evaluation(str(home[0] / "evaluation"))))
    assert [row.names for row in found.tables["iou"]] == [("L2", "L1")]
    assert found.chosen == found.tables["iou"][0]


@pytest.mark.slow
@pytest.mark.usefixtures("registry")
def test_a_version_is_tried_beside_the_depth_that_its_run_recommends():
    subject = find_subject(f"models:/{NAME}@L2")
    assert (subject.names, subject.beside, subject.role, subject.why) == (["L1", "L2"], "L1", "recommended", SENTENCE)
    assert [subject.predictor(name).depth for name in subject.names] == [1, 2]
