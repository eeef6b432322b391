"""The train stage: what it refuses, and its workers on Ray."""

import json
import shutil

import pytest

from pipelines.core.params import load_params
from pipelines.train import train
from pipelines.training.architecture import read_architecture
from tests.pipelines.training.small import ARGUMENTS
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.errors import UserError
from unetpp.files import sha256


@pytest.mark.parametrize("text", ["widths: []", "widths: [8]", "widths: [8, -1]", "widths: eight", "nothing", ""])
def test_architecture_that_is_none_is_refused_by_name(tmp_path, text):
    path = tmp_path / "architecture.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"architecture\.yaml: found"):
        read_architecture(path)


def test_more_workers_than_images_are_refused_before_anything_starts(project, prepared):
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    project.set({"train": {"num_workers": 512, "batch_size": 512}})
    folders = [project.folder / name for name in ("architecture.yaml", "runs", "models", "reports")]
    with pytest.raises(UserError, match=r"training sample\(s\) for 512 workers"):
        train(load_params(project.folder / "params.yaml"), prepared, *folders)
    assert not any(folder.exists() for folder in folders[1:])


@pytest.mark.ray
def test_more_workers_than_cores_are_refused_with_the_numbers(project, prepared):
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    project.set({"train": {"num_workers": 2, "batch_size": 8, "cpus_per_worker": 500}})
    printed = project.run("train", "--prepared", str(prepared), *ARGUMENTS, expect=2)
    assert "need 1000 cores" in printed
    assert "lower train.num_workers" in printed
    assert "Traceback" not in printed
    assert not (project.folder / "models").exists()


@pytest.mark.ray
def test_workers_read_their_nodes_cache_and_a_sample_that_one_cannot_use_stops_all_at_once(project, prepared, tmp_path):
    """The other worker says the same, long before the time-out for one that is silent; nothing is tried again."""
    folder, cache, storage = (tmp_path / name for name in ("prepared", "cache", "storage"))
    folder.mkdir()
    split = Split(prepared / "train.arrow")
    with SplitWriter(folder / "train.arrow") as writer:
        for index in range(len(split)):
            image, mask = split[index]
            side = 16 if index == 2 else 32
            writer.add(split.id(index), "kind", image[:side].copy(), mask[:side].copy())
    shutil.copy(prepared / "val.arrow", folder)
    manifest = json.loads((prepared / "manifest.json").read_text())
    digest = manifest["splits"]["train"]["sha256"] = sha256(folder / "train.arrow")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    project.set({"train": {"timeout_s": 3000, "loader_workers": 1}})
    project.set({"cluster": {"storage": str(storage), "cache": str(cache)}})
    printed = project.run("train", "--prepared", str(folder), *ARGUMENTS, expect=2)
    assert printed.count("uploaded to") == 2
    assert {path.name for path in cache.glob("*.arrow")} > {f"{digest}.arrow"}
    assert list((storage / "runs").glob("train-*"))  # a shared run is not one in runs/
    assert not list((project.folder / "runs").glob("train-*"))
    assert printed.count("error: training stopped:") == 1
    assert f"'{split.id(2)}'" in printed
    assert "in epoch 1: RuntimeError" in printed  # the cause
    assert "of 2)" in printed  # which process
    assert "resuming after" not in printed
    assert "Traceback" not in printed.rpartition("error: training stopped:")[0]
