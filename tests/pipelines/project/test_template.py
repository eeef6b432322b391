"""A project's files are the repository's own: the same stages, run by the installed package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import code
from pipelines.commandline.data import STAGES
from pipelines.core import code_closure
from pipelines.project import template
from tests.conftest import REPOSITORY
from tests.test_stages import TOUCHED, outs, run_dvc

OURS = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
PROJECTS = yaml.safe_load(template.pipeline())


def parts(stage: dict) -> dict:
    """A stage without what stands for the code."""
    body = dict(stage.get("do") or stage)
    body["cmd"] = body["cmd"].replace("python -m pipelines.", "./unetpp stage ")
    body["deps"] = [dep for dep in body.get("deps", []) if not dep.startswith(template.OURS)]
    body["params"] = [one for one in body.get("params", []) if not (isinstance(one, dict) and template.CODE in one)]
    return body | {"foreach": stage.get("foreach")}


def test_a_project_has_the_stages_of_the_repository():
    first, *rest = PROJECTS["stages"]
    assert first == "code"
    assert rest == list(OURS["stages"]) == list(code.STAGES)
    assert set(STAGES) == set(PROJECTS["stages"])
    for name in rest:
        assert parts(PROJECTS["stages"][name]) == parts(OURS["stages"][name])
    assert PROJECTS["plots"] == OURS["plots"]


@pytest.mark.parametrize("name", code.STAGES)
def test_a_stage_depends_on_its_own_code_and_on_no_file_of_it(name):
    stage = PROJECTS["stages"][name]
    body = stage.get("do") or stage
    assert {"code.yaml": [name]} in body["params"]
    assert not [dep for dep in body.get("deps", []) if dep.startswith(template.OURS)]


def test_a_changed_dvc_yaml_is_told_from_one_of_an_older_version():
    text = template.pipeline()
    assert template.is_unchanged(text)
    assert not template.is_unchanged(text.replace("desc: fetch", "desc: get"))
    assert not template.is_unchanged((REPOSITORY / "dvc.yaml").read_text())


def test_the_launcher_runs_the_unetpp_beside_the_dvc_that_calls_it(tmp_path):
    launcher = tmp_path / "a project" / "unetpp"
    environments = {name: tmp_path / name / "bin" for name in ("with dvc", "on path")}
    for folder in (launcher.parent, *environments.values()):
        folder.mkdir(parents=True)
    launcher.write_text((Path(template.__file__).with_name("launcher.sh")).read_text())
    launcher.chmod(0o755)
    for name, folder in environments.items():
        (folder / "unetpp").write_text(f'#!/bin/sh\necho "{name}: $*"\n')
        (folder / "unetpp").chmod(0o755)
    os.symlink(sys.executable, environments["with dvc"] / "python3")
    shell = ["/bin/sh", "-c", "./unetpp stage code; true"]  # as DVC calls it

    def said(*command: str, path: str) -> str:
        done = subprocess.run(
            command, cwd=launcher.parent, env={"PATH": path}, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    python = str(environments["with dvc"] / "python3")
    caller = [python, "-S", "-c", f"import subprocess; subprocess.run({shell})"]
    on_path = f"{environments['on path']}:{os.defpath}"
    assert said(*caller, path=on_path) == "with dvc: stage code\n"
    assert said(*caller, path=os.defpath) == "with dvc: stage code\n"


def test_an_upgrade_changes_the_hashes_of_those_stages_alone_that_a_changed_file_decides(monkeypatch):
    """By the table of the repository's dvc.yaml, whose dependencies are wings: single files decide fewer stages."""
    told = code_closure._deeds
    before = {stage: code_closure.stage_hash(stage) for stage in code.STAGES}
    for touched, stale in TOUCHED.items():
        monkeypatch.setattr(code_closure, "_deeds", lambda path, t=touched: "other" if path == Path(t) else told(path))
        changed = {stage for stage in code.STAGES if code_closure.stage_hash(stage) != before[stage]}
        assert changed <= {stage.partition("@")[0] for stage in stale}, touched
        assert bool(changed) == bool(stale), touched


@pytest.mark.slow
def test_a_changed_hash_in_code_yaml_makes_its_stage_stale_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site cache"))
    folder = tmp_path / "a project"
    folder.mkdir()
    for name, text in template.files((REPOSITORY / "params.yaml").read_text()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / template.CODE).write_text("".join(f"{stage}: as it was\n" for stage in code.STAGES))
    for out in outs(PROJECTS["stages"]):
        (folder / out).parent.mkdir(parents=True, exist_ok=True)
        if out != template.CODE:
            (folder / out).write_text(out)
    shutil.rmtree(folder / ".dvc")
    run_dvc(folder, "init", "--no-scm", "--quiet")
    run_dvc(folder, "commit", "--force")
    hashes = folder / template.CODE
    hashes.write_text(hashes.read_text().replace("train: as it was", "train: other"))
    status = json.loads(run_dvc(folder, "status", "--json"))
    assert status.pop("code")[0] == {"changed outs": {"code.yaml": "modified"}}
    assert status == {"train": [{"changed deps": {"code.yaml": {"train": "modified"}}}]}
