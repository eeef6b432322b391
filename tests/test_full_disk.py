"""Every stage on a disk that is full: one line that names the path, former results whole, the next run completes."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.clones import Clone
from tests.small_disk import SmallDisk

pytestmark = [pytest.mark.ray, pytest.mark.nightly]

STAGES = ("ingest", "prepare", "search", "train", "export", "evaluate", "register")
OWN = ("data/raw", "data/prepared", "models")  # what is written whole; reports are files one by one


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    made = SmallDisk(tmp_path_factory.mktemp("small") / "disk", 300)
    assert made.is_mounted, "this test mounts a tmpfs, for which it has to be root"
    yield made
    made.close()


@pytest.fixture(scope="module")
def clone(disk: SmallDisk) -> Clone:
    """A finished project on the small disk, with mlflow.db and DVC's caches on it."""
    folder = disk.folder / "a project"
    folder.mkdir()
    made = Clone(folder)
    made.run("dvc", "repro")
    return made


@pytest.mark.parametrize("free_kib", [0, 16, 60, 200])
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_in_every_stage(disk, clone, stage, free_kib):
    if stage in ("search", "train"):
        shutil.rmtree(clone.folder / "runs", ignore_errors=True)
    if stage == "register":  # else there is nothing to write
        path = clone.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params["register"]["intended_use"] = f"tests with {free_kib} KiB"
        path.write_text(yaml.safe_dump(params))
    before, lock = clone.hashes(*OWN), (clone.folder / "dvc.lock").read_bytes()
    command = yaml.safe_load((clone.folder / "dvc.yaml").read_text())["stages"][stage]["cmd"]
    with disk.full(free_kib):
        done = clone.finish(*shlex.split(command))
    assert "Traceback" not in done.stdout
    if done.returncode:  # a stage that needs less completes
        assert done.returncode == 2, done.stdout
        last = done.stdout.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert re.search("the disk or quota is full|MiB are needed in|MiB are needed and", last), last
        assert clone.hashes(*OWN) == before
    elif free_kib == 0:
        pytest.fail(f"{stage} wrote nothing: {done.stdout}")
    assert (clone.folder / "dvc.lock").read_bytes() == lock
    assert not list(Path(clone.folder).rglob("*.partial-*"))


@pytest.mark.parametrize("free_kib", [0, 30, 100])
def test_dvc_itself_on_a_full_disk_loses_nothing_that_the_next_run_does_not_make_again(disk, clone, free_kib):
    with disk.full(free_kib):
        done = clone.finish("dvc", "repro", "--force", "--single-item", "evaluate")
    assert done.returncode
    assert "Traceback" not in done.stdout
    clone.run("dvc", "repro")
    assert "up to date" in clone.run("dvc", "repro")
