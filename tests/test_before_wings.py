"""What the code of before the wings wrote is still read: prepared data, a checkpoint, a model file, a registered model.

before_wings.tar.xz holds one of each, written by commit c018d77 from 24 synthetic images of 32x32, and the
probabilities that its networks gave for one of them.
"""

import re
import shutil
import sqlite3
import tarfile
from contextlib import closing
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipelines.core.params import load_params
from pipelines.evaluate import evaluate
from pipelines.registry.load import load_registered
from pipelines.storage.places import Folder
from pipelines.storage.run_store import RunStore
from pipelines.training.in_process import run_alone
from pipelines.training.spec import make_spec
from tests.conftest import REPOSITORY
from unetpp.data.arrow_split import Split
from unetpp.data.scaling import scale
from unetpp.errors import UserError
from unetpp.models.model_file import load_model

WAS_AT = "/tmp/before"
PLACES = {  # MLflow keeps absolute paths
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(REPOSITORY / "tests/before_wings.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
        for table, column in PLACES.items():
            store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (WAS_AT, str(folder)))
    return folder


@pytest.fixture(scope="module")
def params(before):
    """Of before, after the keys were added that the refusal names."""
    path = before / "params.yaml"
    with pytest.raises(UserError, match="every key must be present") as told:
        load_params(path)
    values, now = yaml.safe_load(path.read_text()), yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    for dotted in re.findall(r"([\w.]+): missing", str(told.value)):
        *sections, key = dotted.split(".")
        reduce(getitem, sections, values)[key] = reduce(getitem, sections, now)[key]
    assert "augment.flips" in str(told.value)
    assert values["augment"]["flips"] is True
    values["augment"]["flips"] = "all"
    path.write_text(yaml.safe_dump(values))
    return load_params(path)


@pytest.fixture(scope="module")
def expected(before) -> dict[str, np.ndarray]:
    with np.load(before / "expected.npz") as found:
        return dict(found)


def probs_of(trained, depth: int, before: Path, id: str) -> np.ndarray:
    split = Split(before / "data/prepared/test.arrow")
    with torch.inference_mode():
        return trained.segmenter(depth)(scale(split[split.ids.index(id)][0])[None]).numpy()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_model_file_gives_the_probabilities_that_it_gave(before, expected, depth):
    found = probs_of(load_model(before / "models/train"), depth, before, str(expected["id"]))
    np.testing.assert_allclose(found, expected[f"L{depth}"], atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_registered_version_gives_the_probabilities_that_it_gave(before, expected, depth):
    trained = load_registered(f"models:/unetpp-nuclei@L{depth}", f"sqlite:///{before}/mlflow.db")
    np.testing.assert_allclose(probs_of(trained, depth, before, str(expected["id"])), expected[f"L{depth}"], atol=1e-5)


def test_prepared_data_and_a_model_of_before_are_evaluated(before, params, tmp_path):
    found = evaluate(
        before / "data/prepared", before / "models/train", tmp_path / "out", params.evaluate, torch.device("cpu")
    )
    assert set(found["depths"]) == {"L1", "L2", "mean"}
    assert found["num_images"] == 3


def test_a_checkpoint_of_before_is_resumed(before, params, tmp_path):
    (run,) = (before / "runs").iterdir()
    whole, _ = RunStore(Folder(run)).newest()
    (newest,) = (one for one in run.iterdir() if "_000002_" in one.name)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(newest.name))
    spec = make_spec(params, (4, 6, 8), before / "data/prepared")
    assert run_alone(spec, RunStore(Folder(tmp_path / "run")))
    state, skipped = RunStore(Folder(tmp_path / "run")).newest()
    assert skipped == []
    assert state["history"][0] == whole["history"][0]  # it was not trained again
    assert state["epoch"] == 2
    assert state["history"][1]["train_loss"] == pytest.approx(whole["history"][1]["train_loss"], rel=0.02)
