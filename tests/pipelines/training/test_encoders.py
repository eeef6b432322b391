"""Trained weights of an encoder: where a training run takes them from, what it does with them, what it records."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipelines.core.params import override
from pipelines.search import load_encoders
from pipelines.storage import encoder_weights
from pipelines.storage.encoder_weights import find_encoder_weights
from pipelines.training.results import write_results
from pipelines.training.spec import run_name
from pipelines.tuning.space import read_space
from tests.pipelines.training.small import assert_same, last, run_processes, spec_of, states_of
from tests.unetpp.network.imagenet import LITE, OTHERS
from unetpp.data.manifest import read_manifest
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.models.about import read_about
from unetpp.network.encoders import import_timm

STEM = "pyramid.model.conv_stem.weight"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights as timm names them, drawn by another seed than those of the training runs."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(import_timm().create_model(LITE).state_dict(), path)
    return path


def test_training_begins_with_the_weights_keeps_them_while_frozen_and_records_them(params, prepared, weights, tmp_path):
    model = {"encoder": LITE, "encoder_weights": str(weights)}
    spec = spec_of(params, prepared, model, freeze_encoder_epochs=1)
    first, second = states_of(spec)
    given = import_timm().create_model(LITE, checkpoint_path=str(weights)).state_dict()["conv_stem.weight"]
    assert torch.equal((first.weights or {})[STEM], given)
    assert not torch.equal((second.weights or {})[STEM], given)
    write_results(second, spec, "run", tmp_path / "model", tmp_path)
    about = read_about(tmp_path / "model")
    assert about is not None
    assert about.info["encoder_weights"] == {"uri": str(weights), "sha256": sha256(weights)}
    assert run_name("train", spec) != run_name(
        "train", spec_of(params, prepared, {"encoder": LITE}, freeze_encoder_epochs=1)
    )


def test_share_of_the_rate_is_the_encoders_alone(params, prepared):
    moved = {}
    for share in (1.0, 1e-9):
        spec = spec_of(params, prepared, {"encoder": LITE}, epochs=1, optimizer="sgd", encoder_lr=share)
        torch.manual_seed(spec.train.seed)
        begun, state = spec.build_network().state_dict(), last(spec)
        moved[share] = {key: (value - begun[key]).abs().max() for key, value in (state.weights or {}).items()}
    assert moved[1e-9][STEM] < 1e-7 < moved[1.0][STEM]
    assert moved[1e-9]["nodes.0_2.conv1.weight"] > 1e-5


@pytest.mark.slow
@pytest.mark.nightly
def test_every_encoder_learns_in_several_processes(params, prepared, tmp_path):
    """Gradients are exchanged, which fails if a parameter has none; processes end with the same weights."""
    jobs = {
        name: (spec_of(params, prepared, {"encoder": name}, epochs=1, num_workers=2), None)
        for name in ("resnet18", *OTHERS[1:])  # as resnet34, in half the time
    }
    for states in run_processes(2, jobs, tmp_path).values():
        assert_same(states[0][-1], states[1][-1])


def test_weights_that_are_not_there_are_refused_by_their_key(params, tmp_path, monkeypatch):
    def asked(**model: Any):
        return find_encoder_weights(params.model.model_copy(update=model))

    assert asked() is None
    with pytest.raises(UserError, match=r"model\.encoder_weights=none\.pth: no such file"):
        asked(encoder=LITE, encoder_weights="none.pth")
    monkeypatch.setattr(encoder_weights, "CACHE", tmp_path)
    timm = import_timm()

    def offline(name, **_):
        raise OSError(f"no route to the hub of {name}")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"encoder_weights=hub: .*OSError: no route to the hub.*without a network"):
        asked(encoder=LITE, encoder_weights="hub")
    torch.manual_seed(0)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: torch.nn.Linear(2, 2))  # there is network
    found = asked(encoder=LITE, encoder_weights="hub")
    assert found is not None
    assert (found.uri, found.sha256) == (f"timm/{LITE}", sha256(found.file))
    monkeypatch.setattr(timm, "create_model", offline)
    assert asked(encoder=LITE, encoder_weights="hub") == found  # fetched once


@pytest.mark.parametrize(
    ("key", "value"),
    [("model.encoder_weights", "hub"), ("train.encoder_lr", 0.1), ("train.freeze_encoder_epochs", 1)],
)
def test_settings_of_an_encoder_that_there_is_not_are_refused(params, key, value):
    with pytest.raises(UserError, match=f"{key} is {value}, and model.encoder is null"):
        override(params, {key: value})
    assert override(params, {key: value, "model.encoder": LITE}).model.encoder == LITE
    for name in ("hf-hub:someone/resnet34", "ResNet34"):
        with pytest.raises(UserError, match=rf"^model\.encoder: expected null or the name of .* found '{name}'"):
            override(params, {"model.encoder": name})


def test_weights_of_several_encoders_are_given_by_name_and_never_as_one_file(params):
    both = {"model.encoder": [None, LITE, "resnet34"]}

    def asked(weights, encoder=None, space=both):
        return override(params, {"search.space": space, "model.encoder_weights": weights, "model.encoder": encoder})

    with pytest.raises(UserError, match=rf"lite\.pth, a file for one encoder, .* {LITE}, resnet34: give each"):
        asked("lite.pth")
    with pytest.raises(UserError, match=rf"rows for {LITE}, and none for resnet34: add `resnet34: FILE`"):
        asked({LITE: "lite.pth"})
    with pytest.raises(UserError, match=r"rows for no encoder, and none for vgg19"):
        asked({}, "vgg19", {})
    with pytest.raises(UserError, match=r"expected null, hub, a path, or one of these for each encoder.*found \[1\]"):
        asked([1])
    assert asked("lite.pth", space={"model.encoder": [None, LITE]}).model.encoder_weights == "lite.pth"
    assert [asked(one, LITE).model.initial_weights for one in (None, "hub")] == [None, "hub"]
    each = {LITE: "lite.pth", "resnet34": None}
    assert [asked(each, one).model.initial_weights for one in (None, LITE, "resnet34")] == [None, "lite.pth", None]


def test_search_loads_the_weights_of_every_encoder_before_any_trial(params, prepared, weights, tmp_path):
    def load(**changes):
        search = {"search.widths": [[4, 6], [4, 6, 8]], "search.space": {"model.encoder": [None, LITE, "resnet18"]}}
        return load_encoders(read_space(override(params, search | changes)), read_manifest(prepared))

    other = tmp_path / "resnet18.pth"
    torch.save(import_timm().create_model("resnet18").state_dict(), other)
    each = {LITE: str(weights), "resnet18": str(other)}
    assert sorted(load(**{"model.encoder_weights": each})) == sorted([sha256(weights), sha256(other)])
    assert load() == []
    with pytest.raises(UserError, match=r"lite0\.safetensors: found tensors such as .* such as conv1\.weight"):
        load(**{"model.encoder_weights": each | {"resnet18": str(weights)}})
    one = {"search.space": {"model.encoder": [None, LITE]}}
    with pytest.raises(UserError, match=r"resnet18\.pth: found tensors such as .*such as conv_stem\.weight"):
        load(**one, **{"model.encoder_weights": str(other)})
