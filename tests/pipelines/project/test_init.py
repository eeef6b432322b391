"""`unetpp init` and `unetpp plan` around a plan: what they write, complete, refuse and keep."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.core.files import replacing
from pipelines.core.params import load_params
from pipelines.planning.plan import Choice, Plan
from pipelines.project import init as init_of
from pipelines.project import repository, template
from pipelines.project.init import init
from pipelines.project.renew import renew
from tests.clones import git
from unetpp.errors import UserError

EPOCHS = Choice(41, "a minute is that long")


@pytest.fixture(autouse=True)
def planned(monkeypatch, tmp_path) -> list[dict]:
    """A plan that takes no time, and what it was asked; a git that knows nobody; the current folder has data/."""
    asked = []

    def make_plan(location, name, minutes, *, base, keep=None):  # noqa: ARG001 - as it is called
        asked.append({"location": location, "name": name, "minutes": minutes, "keep": keep or {}})
        chosen = {"train.epochs": EPOCHS, "register.model_name": Choice("x", "y")}
        chosen = {key: choice for key, choice in chosen.items() if key not in (keep or {})}
        return Plan(chosen, ["40 images"], ["is it so?"], "1 min")

    monkeypatch.setattr(init_of, "make_plan", make_plan)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site cache"))
    (tmp_path / "my data").mkdir()
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.fixture
def fast(monkeypatch):
    """Git and DVC are not asked."""
    monkeypatch.setattr(repository, "set_up", lambda _folder: [])
    monkeypatch.setattr(repository, "commit", lambda *_: None)
    monkeypatch.setattr(repository, "lacking", lambda _folder: [])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_folder_becomes_a_project_of_git_and_dvc_without_an_identity(tmp_path, capsys, planned):
    init(Path("a b"), "my data", minutes=5)
    folder = tmp_path / "a b"
    params = load_params(folder / "params.yaml")
    assert (params.ingest.kind, params.ingest.location) == ("folder", "../my data")
    assert (params.registry.model_name, params.registry.experiment) == ("a-b", "a-b")
    assert params.train.epochs == 41
    assert "  # plan 41: a minute is that long\n  epochs: 41" in (folder / "params.yaml").read_text()
    assert planned == [{"location": "my data", "name": "a-b", "minutes": 5, "keep": {}}]
    config = (folder / ".dvc/config").read_text()
    assert "autostage = true" in config  # else DVC prints after each run what to add
    assert "analytics = false" in config
    assert subprocess.run(["dvc", "status"], cwd=folder, capture_output=True, text=True).returncode == 0
    said = capsys.readouterr().out
    assert "41 (a minute is that long)" in said
    assert "cd 'a b' && " in said
    assert "git config user.name" in said
    assert max(len(line) for line in said.splitlines() if "dvc repro" not in line and "git" not in line) < 80
    before = files(folder)
    init(Path("a b"), "my data")
    assert "is already a project for these data; nothing changed" in capsys.readouterr().out
    (folder / ".dvc/plots/front.json").unlink()
    init(Path("a b"), "my data")
    assert "restored: .dvc/plots/front.json" in capsys.readouterr().out
    assert {name: one for name, one in files(folder).items() if ".dvc/tmp" not in name and ".git/" not in name} == {
        name: one for name, one in before.items() if ".dvc/tmp" not in name and ".git/" not in name
    }


@pytest.mark.slow
def test_a_subfolder_of_a_repository_becomes_a_project_and_nothing_is_committed(tmp_path, monkeypatch):
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "me")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "me@localhost")
    git(tmp_path, "init", "-q")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/.gitignore").write_text("*.log")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "mine")
    init(Path("sub"), "my data")
    assert git(tmp_path, "log", "--format=%s") == "mine"
    assert (tmp_path / "sub/.gitignore").read_text().startswith("*.log\n# what the stages make")
    assert not (tmp_path / ".dvc").exists()
    assert repository.lacking(tmp_path / "sub") == ["git add .", "git commit -m project"]
    init(Path("other"), "my data")  # in a repository of its own it makes the first commit, since git knows somebody
    assert repository.lacking(tmp_path / "other") == ["git add .", "git commit -m project"]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("cut", ["params.yaml", "unetpp", "dvc.yaml", ".gitignore"])
def test_the_same_command_completes_what_ctrl_c_has_cut(tmp_path, monkeypatch, cut, planned):
    init(Path("whole"), "my data", name="n")

    def interrupted(path):
        if Path(path).name == cut:
            raise KeyboardInterrupt
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(init_of, "replacing", interrupted)
        with pytest.raises(KeyboardInterrupt):
            init(Path("cut"), "my data", name="n")
    init(Path("cut"), "my data", name="n")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert len(planned) == (2 if cut == "dvc.yaml" else 3)


@pytest.mark.usefixtures("fast")
def test_what_lies_in_the_folder_stays_or_is_in_the_way(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    for name in ("params.yaml", "dvc.yaml", "unetpp"):
        (folder / name).write_text("# mine\n")
        with pytest.raises(UserError, match=rf"p/{name}: already exists"):
            init(folder, "my data")
        assert sorted(files(folder)) == sorted(["notes.txt", name])
        (folder / name).unlink()
    init(folder, "my data")
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("fast")
def test_other_data_name_or_minutes_are_refused_and_another_path_to_the_same_is_not(tmp_path):
    init(Path("p"), "my data")
    before = files(tmp_path / "p")
    init(Path("p"), str(tmp_path / "my data"))
    (tmp_path / "others").mkdir()
    others: tuple[tuple[str, dict[str, Any]], ...] = (
        ("others", {}),
        ("my data", {"name": "q"}),
        ("my data", {"minutes": 7.0}),
    )
    for data, words in others:
        with pytest.raises(UserError, match="is already a project, with --data"):
            init(Path("p"), data, **words)
    assert files(tmp_path / "p") == before


@pytest.mark.usefixtures("fast")
def test_values_that_the_user_sets_are_the_plans_too(tmp_path, planned):
    layout = {"images": "{id}", "masks": "labels/{id}"}
    settings = ["ingest.layout={images: '{id}', masks: 'labels/{id}'}", "train.epochs=3"]
    init(Path("p"), "my data", settings=settings)
    assert planned[-1]["keep"] == {"ingest.layout": layout, "train.epochs": 3}
    params = load_params(tmp_path / "p/params.yaml")
    assert params.ingest.layout is not None
    assert params.ingest.layout.model_dump() == layout
    init(Path("p"), "my data", settings=settings)  # the same again
    with pytest.raises(UserError, match=r"is already a project, with .* --set train.epochs="):
        init(Path("p"), "my data", settings=["train.epochs=5"])
    for wrong, message in (("train.epoch=3", "did you mean train.epochs"), ("epochs", "expected section.key=value")):
        with pytest.raises(UserError, match=message):
            init(Path("q"), "my data", settings=[wrong])
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    ("folder", "data", "expected"),
    [
        ("p", "none", "none: no such file"),
        ("p", "a.txt", r"a\.txt: found a file; expected a folder, or one of \.zip"),
        ("a.txt", "my data", r"a\.txt: found a file; expected a folder"),
        ("my data/p", "my data", "would write its data/ into this folder"),
        (".", "data", "would write its data/ into this folder"),
        ("p", "https://host/set.zip?token=abc&X-Amz-Signature=" + 64 * "a", "a credential|looks like"),
    ],
)
def test_what_cannot_be_a_project_or_its_data_is_refused_before_anything_is_written(tmp_path, folder, data, expected):
    (tmp_path / "a.txt").touch()
    (tmp_path / "data").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=expected):
        init(Path(folder), data)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("fast")
def test_an_archive_is_brought_as_stage_ingest_brings_it_before_it_is_planned(tmp_path, monkeypatch, planned):
    (tmp_path / "a.zip").touch()
    fetched = []
    monkeypatch.setattr(init_of, "ingest", lambda params, out, cache: fetched.append((params.location, out, cache)))
    init(Path("p"), "a.zip")
    assert fetched == [(str(tmp_path / "a.zip"), Path("p/data/raw"), Path("p/data/cache"))]
    assert planned[0]["location"] == "p/data/raw"
    ingest = load_params(tmp_path / "p/params.yaml").ingest
    assert (ingest.kind, ingest.location) == ("zip", "../a.zip")


@pytest.mark.usefixtures("fast")
def test_plan_shows_and_on_accept_writes_what_changed_and_what_a_newer_version_knows(tmp_path, capsys, planned):
    init(Path("p"), "my data", name="n", minutes=3)
    path = tmp_path / "p/params.yaml"
    whole = path.read_text()
    old = whole.replace("epochs: 41", "epochs: 20").replace("  # plan 41: a minute is that long\n", "")
    old = re.sub("  fit: .*\n", "", old).replace("batch_size: 8 ", "batch_size: 4 ").replace("# sgd alone", "# mine")
    path.write_text(old)
    capsys.readouterr()
    renew(tmp_path / "p")
    said = capsys.readouterr().out
    assert path.read_text() == old
    for line in ("train.epochs: 20 -> 41 (a minute is that long)", "prepare.fit", "train.batch_size: 4", "--accept"):
        assert line in said
    assert (planned[-1]["minutes"], planned[-1]["keep"]) == (3, {"train.batch_size": 4})
    renew(tmp_path / "p", accept=[])
    changed = whole.replace("batch_size: 8 ", "batch_size: 4 ").replace("# sgd alone", "# mine")
    assert path.read_text().split() == changed.split()
    capsys.readouterr()
    renew(tmp_path / "p")
    assert "already matches the plan" in capsys.readouterr().out


@pytest.mark.usefixtures("fast")
def test_plan_keeps_what_a_person_changed_unless_its_key_is_named(tmp_path, capsys):
    init(Path("p"), "my data")
    path = tmp_path / "p/params.yaml"
    path.write_text(path.read_text().replace("epochs: 41", "epochs: 50"))
    renew(tmp_path / "p", accept=[])
    assert load_params(path).train.epochs == 50
    assert "train.epochs: 50" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train\.loss: found no change of that name"):
        renew(tmp_path / "p", accept=["train.loss"])
    renew(tmp_path / "p", accept=["train.epochs"])
    assert load_params(path).train.epochs == 41


@pytest.mark.usefixtures("fast")
def test_plan_names_unknown_keys_and_what_is_like_them(tmp_path):
    init(Path("p"), "my data")
    path = tmp_path / "p/params.yaml"
    path.write_text(path.read_text().replace("  momentum:", "  momentun:"))
    with pytest.raises(UserError, match=r"train\.momentun \(did you mean train\.momentum\?\); remove or rename"):
        renew(tmp_path / "p", accept=[])
    assert yaml.safe_load(path.read_text())["train"]["momentum"] == 0.9


@pytest.mark.usefixtures("fast")
def test_plan_renews_a_dvc_yaml_that_nobody_changed(tmp_path, capsys):
    init(Path("p"), "my data")
    path, wanted = tmp_path / "p/dvc.yaml", template.pipeline()
    body = wanted[wanted.index("stages:") :].replace("--cache data/cache", "")
    older = template.signature(body) + "\n\n" + body
    path.write_text(older)
    renew(tmp_path / "p")
    assert path.read_text() == older
    assert "+    cmd: ./unetpp stage ingest --out data/raw --cache data/cache" in capsys.readouterr().out
    renew(tmp_path / "p", accept=[])
    assert path.read_text() == wanted
    mine = older.replace("desc: fetch", "desc: get")
    path.write_text(mine)
    renew(tmp_path / "p", accept=[])
    assert path.read_text() == mine
    assert "dvc.yaml has your changes and is kept" in capsys.readouterr().out
