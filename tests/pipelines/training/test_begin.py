"""A training that begins with the weights of a trained model (`train.init`)."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from pipelines.cluster import job_package
from pipelines.core.params import load_params
from pipelines.registry.mlflow_store import connect
from pipelines.search import fetch_init, search
from pipelines.storage.node_cache import share
from pipelines.training.architecture import find_init, read_architecture
from pipelines.training.begin import begin_with, read_begin
from pipelines.training.epochs import Training
from pipelines.training.results import write_results
from pipelines.training.spec import Init, TrainSpec, make_spec, run_name
from pipelines.training.state import Best, TrainState
from tests.pipelines.registry.family import NAME
from tests.pipelines.training.small import CPU
from unetpp.data.manifest import read_manifest
from unetpp.errors import UserError
from unetpp.models.model_file import load_model
from unetpp.network.masks import FOR_INSTANCES

WIDTHS = [[4, 8, 16]]  # of the family


def search_here(project, prepared: Path, init: Path | None) -> Path:
    folder = project.folder
    params = load_params(folder / "params.yaml")
    search(params, prepared, folder / "runs", folder / "models/search", folder / "reports", init)
    return folder / "models/search/architecture.yaml"


def spec_of(project, prepared: Path, path: Path):
    params, chosen = load_params(project.folder / "params.yaml"), read_architecture(path)
    return make_spec(params, chosen.widths, prepared, init=find_init(path, chosen, params))


def init_of(spec: TrainSpec) -> Init:
    assert spec.init is not None
    return spec.init


def test_it_begins_with_the_very_version_that_an_alias_named_when_search_ran(
    project, prepared, home, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(home[0])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow sets wherever a store was opened
    asked = f"models:/{NAME}@L2"
    project.set({"search": {"widths": WIDTHS}, "train": {"init": asked, "num_workers": 1}})
    init = fetch_init(asked, tmp_path)
    assert init is not None
    path = search_here(project, prepared, init)
    model, origin = load_model(home[0] / "model"), yaml.safe_load(path.read_text())["init_origin"]
    assert model.sha256 is not None
    uri = f"models:/{NAME}/{connect(f'sqlite:///{home[0]}/mlflow.db').get_model_version_by_alias(NAME, 'L2').version}"
    assert origin == {"asked": asked, "uri": uri, "sha256": model.sha256}
    assert f"train starts from {uri}, sha256 {model.sha256[:12]} (train.init={asked})\n" in capsys.readouterr().out

    spec = spec_of(project, prepared, path)
    training = Training(replace(spec, train=spec.train.model_copy(update={"ema": 0.9})), CPU)
    assert model.depths == (1, 2)
    for network in (training.network, training.result):
        for key, value in network.state_dict().items():
            assert torch.equal(value, model.network.state_dict()[key]), key
    assert run_name("train", spec) != run_name("train", replace(spec, init=None))
    row = {"epoch": 1, "train_loss": 1.0, "learning_rate": 0.1, "val_iou": 0.5}
    row |= {f"val_{one}_L{depth}": 0.5 for one in ("iou", "loss") for depth in (1, 2)}
    state = TrainState(1, history=[row], best=Best(0, 0.5, model.network.state_dict()))
    write_results(state, spec, "run", tmp_path / "train", tmp_path / "reports")
    assert load_model(tmp_path / "train").info["init"] == {"uri": uri, "sha256": model.sha256}


def test_search_and_train_must_agree_on_what_a_training_begins_with(project, prepared, home, tmp_path):
    folder = str(home[0] / "model")
    project.set({"search": {"widths": WIDTHS}, "train": {"init": folder}})
    path = search_here(project, prepared, fetch_init(folder, tmp_path))
    assert (init_of(spec_of(project, prepared, path)).origin or {})["uri"] == folder
    project.set({"train": {"init": "models:/nuclei@champion"}})
    with pytest.raises(
        UserError, match=r"found .*/model as initial weights; expected those of train.init=models:/nuclei@champion"
    ):
        spec_of(project, prepared, path)
    project.set({"train": {"init": "search"}})
    with pytest.raises(UserError, match=r"expected those of train\.init=search: run `dvc repro search`"):
        spec_of(project, prepared, path)
    project.set({"train": {"init": None}})
    assert spec_of(project, prepared, path).init is None


def test_a_model_of_another_build_is_refused_before_any_trial_with_what_to_set(project, prepared, home, tmp_path):
    folder = str(home[0] / "model")
    init = fetch_init(folder, tmp_path)
    project.set({"search": {"widths": [[4, 6, 8], [4, 8, 16]]}, "train": {"init": folder}})
    message = r"widths: found \[4, 8, 16\] in the trained network and \[4, 6, 8\].*search\.widths=\[\[4, 8, 16\]\]"
    with pytest.raises(UserError, match=f"train.init={folder} .*{message}"):
        search_here(project, prepared, init)
    assert not (project.folder / "models").exists()
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="no such model"):
            fetch_init(str(missing), tmp_path / "other")


def test_the_first_levels_of_a_family_are_enough_and_a_folded_model_is_no_beginning(project, prepared, home, tmp_path):
    params, manifest = load_params(project.folder / "params.yaml"), read_manifest(prepared)
    begin = read_begin(fetch_init(str(home[0] / "model"), tmp_path) or tmp_path)
    weights, anew = begin_with(begin, params, (4, 8), manifest)
    assert anew == []
    assert all(torch.equal(value, begin[0].network.state_dict()[key]) for key, value in weights.items())
    with pytest.raises(UserError, match=r"norm: found none .*batch norm was folded away"):
        begin_with((begin[0].folded(), begin[1]), params, (4, 8, 16), manifest)


def test_heads_of_other_classes_are_drawn_anew_and_alike(project, prepared, home, tmp_path):
    begin = read_begin(fetch_init(str(home[0] / "model"), tmp_path) or tmp_path)
    params = load_params(project.folder / "params.yaml")
    manifest = replace(read_manifest(prepared), num_classes=3)
    weights, anew = begin_with(begin, params, (4, 8, 16), manifest)
    assert anew == [1, 2]
    assert weights["heads.2.weight"].shape[0] == 3
    again, _ = begin_with(begin, params, (4, 8, 16), manifest)
    assert all(torch.equal(value, again[key]) for key, value in weights.items())
    with_targets = params.model_copy(update={"model": params.model.model_copy(update={"targets": FOR_INSTANCES})})
    weights, anew = begin_with(begin, with_targets, (4, 8, 16), read_manifest(prepared))
    assert anew == [1, 2]
    assert weights["heads.2.weight"].shape[0] == 3


def test_the_weights_travel_to_a_cluster_with_the_job_and_to_each_node(project, prepared, home, tmp_path, monkeypatch):
    folder = str(home[0] / "model")
    project.set({"search": {"widths": WIDTHS}, "train": {"init": folder}, "cluster": {"storage": str(tmp_path / "s")}})
    monkeypatch.chdir(project.folder)
    params, init = load_params(), fetch_init(folder, tmp_path)
    assert init is not None
    arguments = {"prepared": prepared, "init": init} | {name: Path(name) for name in ("out", "reports", "runs")}
    job_package.pack(tmp_path / "package", "search", params, arguments)
    job = (tmp_path / "package" / job_package.JOB).read_text()
    assert '"init": "inputs/init/init"' in job
    assert read_begin(tmp_path / "package/inputs/init/init")[1] == read_begin(init)[1]

    spec = spec_of(project, prepared, search_here(project, prepared, init))
    shared = share(params, prepared, spec.manifest, (Path(init_of(spec).file), init_of(spec).sha256))
    assert shared is not None
    shared["cache"] = str(tmp_path / "cache")
    shutil.rmtree(project.folder / "models")
    found = Training(replace(spec, shared=shared), CPU).network.state_dict()
    for key, value in load_model(folder).network.state_dict().items():
        assert torch.equal(value, found[key]), key
