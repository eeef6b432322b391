"""dvc.yaml names the code that decides each stage's result: no less, or what is stale stays; no more, by wings."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import boto3
import pytest
import yaml

from pipelines.cli import build_parser
from pipelines.core import code_closure
from pipelines.core.code_closure import closure, code_hash
from pipelines.core.params import load_params
from pipelines.ingest import ingest
from tests.clones import Clone
from tests.conftest import REPOSITORY

STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]


def code_deps(stage: str) -> list[str]:
    deps = (STAGES[stage].get("do") or STAGES[stage])["deps"]
    return [one for one in deps if one.startswith(("pipelines/", "unetpp/"))]


def decisive(stage: str) -> set[str]:
    return {path.as_posix() for path in code_closure.decisive(stage)}


def is_within(file: str, dep: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_code_that_decides_its_result_and_on_no_other_wing(stage):
    files, deps = decisive(stage), code_deps(stage)
    assert files
    missing = {file for file in files if not any(is_within(file, dep) for dep in deps) and "/__init__" not in file}
    assert missing == set(), f"add them, or their wings, to the deps of {stage} in dvc.yaml"
    unused = {dep for dep in deps if not any(is_within(file, dep) for file in files)}
    assert unused == set(), f"nothing that {stage} runs imports them"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_can_be_called_in_a_project(stage):
    assert build_parser().parse_args(["stage", stage]).stage == stage


# A file of each wing that decides something, and the stages that are stale when it changes.
TOUCHED = {
    "pipelines/storage/archives.py": {"ingest"},
    "pipelines/dataset/splits.py": {"prepare"},
    "pipelines/tuning/space.py": {"search"},
    "pipelines/training/batches.py": {"search", "train"},
    "pipelines/training/epoch_metrics.py": {"search", "train", "register"},
    "pipelines/evaluation/quality.py": {"evaluate", "register"},
    "pipelines/registry/promotion_rules.py": {"register"},
    "pipelines/served/answers.py": {"register"},
    "pipelines/pages/templates/report.html.j2": {"pages@data", "pages@search", "pages@depths"},
    "pipelines/core/files.py": set(),
    "pipelines/console/progress.py": set(),
    "pipelines/cluster/jobs.py": set(),
    "unetpp/images/decode.py": {"ingest", "prepare", "register"},
    "unetpp/network/losses.py": {"search", "train", "export", "evaluate", "register"},
    "unetpp/data/augment.py": {"search", "train", "export", "evaluate", "register"},
    "unetpp/scores/metrics.py": {"search", "train", "evaluate"},
    "unetpp/models/segmenter.py": {"search", "train", "export", "evaluate", "register"},
    "unetpp/engines/engine.py": {"train", "export", "evaluate", "register"},  # train: objects are parted on val
    "unetpp/training/checkpoint.py": {"search", "train"},
    "unetpp/export/graphs.py": {"export"},
}


@pytest.mark.slow
def test_a_changed_file_makes_exactly_the_stages_stale_that_use_it(tmp_path):
    """By `dvc status` of a copy whose stages count as run."""
    for name in ("pipelines", "unetpp", "dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config"):
        source, copy = REPOSITORY / name, tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    run_dvc(tmp_path, "config", "core.no_scm", "true")
    for out in outs(STAGES):
        path = tmp_path / out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(out)
    run_dvc(tmp_path, "commit", "--force")
    code = ROUNDS.format(names=[*TOUCHED])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {name: set(stages) for name, stages in json.loads(done.stdout.splitlines()[-1]).items()}
    assert found.pop("nothing") == set()
    assert found.pop("an import, which writes __pycache__") == set()
    assert found == TOUCHED


ROUNDS = """
import json, subprocess, sys
from pathlib import Path
from dvc.repo import Repo

def stale():
    with Repo(".") as repo:
        return [stage for stage, changes in repo.status().items() if any("changed deps" in one for one in changes)]

found = {{"nothing": stale()}}
subprocess.run([sys.executable, "-c", "import pipelines.training.spec"], check=True)
assert list(Path("pipelines/training").glob("__pycache__/*.pyc"))
found["an import, which writes __pycache__"] = stale()
for name in {names}:
    before = Path(name).read_bytes()
    Path(name).write_bytes(before + b"\\n")
    found[name] = stale()
    Path(name).write_bytes(before)
print(json.dumps(found))
"""


def run_dvc(folder: Path, *arguments: str) -> str:
    return subprocess.run(["dvc", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def outs(stages: dict) -> list[str]:
    """The paths that the stages write; what several stages write into one folder are files in it."""
    found = []
    for stage in stages.values():
        for item in (stage.get("foreach") or {"": {}}).values():
            body = stage.get("do") or stage
            for out in [*body.get("outs", ()), *body.get("metrics", ())]:
                path = next(iter(out)) if isinstance(out, dict) else out
                found.append(item.get("out", path))
    return found


def test_the_hash_of_the_code_changes_with_what_it_does_and_not_with_what_it_says(tmp_path, monkeypatch):
    home = "pipelines.core.code_closure"
    file = Path("unetpp/network/losses.py")
    text = (REPOSITORY / file).read_text()
    for name in ("pipelines", "unetpp"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)

    def hashed() -> str:
        for cached in (closure, code_hash, code_closure._deeds):
            cached.cache_clear()
        return code_hash("pipelines.train")

    monkeypatch.setattr(f"{home}.ROOT", tmp_path)
    try:
        before = hashed()
        (tmp_path / file).write_text(text.replace('"""', '"""Said otherwise. ', 1) + "\n\n# a comment\n")
        assert hashed() == before
        (tmp_path / file).write_text(text + "\nx = 1\n")
        assert hashed() != before
        (tmp_path / file).write_text(text)
        (tmp_path / "pipelines/training/batches.py").write_text("x = 1\n")
        assert hashed() != before
        (tmp_path / "pipelines/training/batches.py").write_text(
            (REPOSITORY / "pipelines/training/batches.py").read_text()
        )
        (tmp_path / "unetpp/images/pictures.py").write_text("x = 1\n")  # what prepare writes, and no training run
        assert hashed() == before
    finally:
        for cached in (closure, code_hash, code_closure._deeds):
            cached.cache_clear()


def test_an_override_changes_one_line_of_params(tmp_path):
    """params.yaml is in the style in which DVC writes it."""
    path = tmp_path / "params.yaml"
    shutil.copy(REPOSITORY / "params.yaml", path)
    code = "from dvc.utils.serialize import modify_yaml\nwith modify_yaml('params.yaml') as p: p['train']['epochs'] = 7"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    before, after = ((one / "params.yaml").read_text().splitlines() for one in (REPOSITORY, tmp_path))
    assert len(before) == len(after)
    assert [line.split()[:2] for line, old in zip(after, before, strict=True) if line != old] == [["epochs:", "7"]]


@pytest.mark.slow
@pytest.mark.usefixtures("aws")
def test_a_bucket_imported_by_dvc_takes_the_place_of_ingests_download(tmp_path, moto):
    """`dvc import-url`, then ingest from the folder that it made: the same data as by ingest's own download."""
    folder = tmp_path / "a project"
    folder.mkdir()
    clone = Clone(folder)
    images = tmp_path / "set"
    synthetic = load_params(folder / "params.yaml").ingest
    ingest(synthetic, images)
    with closing(boto3.client("s3", endpoint_url=moto)) as client:
        client.create_bucket(Bucket="images")
        for path in images.rglob("*.png"):
            client.upload_file(str(path), "images", f"set/{path.relative_to(images).as_posix()}")
    clone.run("dvc", "remote", "add", "store", "s3://images")
    clone.run("dvc", "remote", "modify", "store", "endpointurl", moto)
    clone.run("dvc", "import-url", "remote://store/set", "source")
    ways = {"s3": "s3://images/set", "folder": "source"}
    prepared = []
    for kind, location in ways.items():
        values = yaml.safe_load((folder / "params.yaml").read_text())
        values["ingest"] |= {"kind": kind, "location": location}
        values["ingest"]["s3"]["endpoint"] = moto
        (folder / "params.yaml").write_text(yaml.safe_dump(values))
        clone.run("dvc", "repro", "prepare")
        assert clone.json("data/raw/manifest.json")["source"]["kind"] == kind
        hashes = clone.hashes("data/prepared")
        hashes.pop("data/prepared/manifest.json")  # it names the manifest of the raw data, and that its source
        prepared.append(hashes)
    assert prepared[0] == prepared[1]
    assert set(prepared[0]) >= {f"data/prepared/{name}" for name in ("train.arrow", "test.arrow", "split.csv")}
