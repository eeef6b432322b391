"""What decides a training run travels to other processes and names its run; a state is what a checkpoint holds."""

import json
import pickle
from dataclasses import replace

import pytest
import ray
import torch

from pipelines.core.params import override
from pipelines.training import private_calls
from pipelines.training.spec import Init, run_name
from pipelines.training.state import TrainState
from tests.pipelines.training.small import last, spec_of
from unetpp.data.arrow_split import Split
from unetpp.errors import UserError
from unetpp.training.checkpoint import from_bytes, to_bytes


def test_weights_of_classes_are_of_the_manifest_or_of_params(params, prepared):
    pixels = json.loads((prepared / "manifest.json").read_text())["class_pixels"]
    split = Split(prepared / "train.arrow")
    masks = [split[index][1] for index in range(len(split))]
    assert pixels == [sum(int((mask == value).sum()) for mask in masks) for value in (0, 1)]
    weights = spec_of(params, prepared, class_weights="balanced").class_weights
    assert weights == pytest.approx([sum(pixels) / (2 * count) for count in pixels])
    assert spec_of(params, prepared, class_weights=(1, 3)).class_weights == [1.0, 3.0]
    assert spec_of(params, prepared).class_weights is None


def changed_manifest(prepared, folder, change) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_weights_that_the_manifest_cannot_give_are_refused_before_any_training(params, prepared, tmp_path):
    changed_manifest(prepared, tmp_path, lambda manifest: manifest.pop("class_pixels"))
    with pytest.raises(UserError, match=r"manifest\.json: found no class_pixels"):
        spec_of(params, tmp_path, class_weights="balanced")


def test_batch_norm_over_all_processes_is_refused_on_processors(params):
    with pytest.raises(UserError, match=r"train\.sync_batchnorm .* GPUs alone: .*model\.norm"):
        override(params, {"train.sync_batchnorm": True})
    assert override(params, {"train.sync_batchnorm": True, "train.use_gpu": True}).train.sync_batchnorm


def test_name_of_a_run_changes_with_params_widths_data_and_first_weights(params, prepared, tmp_path):
    spec = spec_of(params, prepared)
    changed_manifest(prepared, tmp_path, lambda manifest: manifest["splits"]["train"].update(sha256="0" * 64))
    others = [
        replace(spec, widths=(4, 6, 9)),
        spec_of(params, prepared, seed=1),
        spec_of(params, prepared, {"dropout": 0.1}),
        spec_of(params, prepared, {}, {"hue": 0}),
        spec_of(params, tmp_path),
        replace(spec, init=Init("init.pt", "0" * 64)),
    ]
    names = {run_name("train", one) for one in [spec, *others]}
    assert len(names) == 1 + len(others)
    # Not with where the data lie, nor with sections that train does not read.
    elsewhere = replace(spec, prepared=tmp_path, shared={"storage": "s3://bucket"}, init=None)
    assert run_name("train", elsewhere) == run_name("train", spec)
    assert run_name("search", spec, ["a space"]) != run_name("search", spec, ["another"])


def test_training_travels_to_other_processes(params, prepared):
    spec = spec_of(params, prepared, num_workers=(1, 2), head_weights=(1, 2), class_weights="balanced")
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_state_of_a_checkpoint_is_the_one_that_was_kept_and_an_older_one_is_read(params, prepared):
    state = last(spec_of(params, prepared, epochs=1, ema=0.9))
    content, manifest = to_bytes(state.to_dict())
    again = TrainState.from_dict(from_bytes(bytes(content), manifest, "a checkpoint"))
    assert again.history == state.history
    assert again.best.val_iou == state.best.val_iou
    # As the version before wrote it, with fewer keys, and one that no later version may know.
    older = {"epoch": 1, "history": [{"epoch": 1}], "weights": {"a": torch.ones(1)}, "optimizer": {}, "world": 2}
    older |= {"best": {"epoch": 0, "val_iou": 0.5, "weights": {}}, "accumulate": 1, "skipped": 3, "once": True}
    found = TrainState.from_dict(older)
    assert (found.epoch, found.step, found.skipped, found.best.val_iou, found.ema) == (1, 0, 3, 0.5, None)
    assert found.is_finished(1)
    assert not TrainState.from_dict(older | {"step": 2, "stopped": True}).is_finished(1)
    assert TrainState.from_dict({}) == TrainState()


def test_versions_whose_private_calls_were_looked_at():
    """After an upgrade look through `pipelines.training.private_calls`, run the tests marked ray, and change this."""
    assert ray.__version__.startswith("2.60."), private_calls.__doc__
    assert torch.__version__.startswith("2.13."), private_calls.__doc__
