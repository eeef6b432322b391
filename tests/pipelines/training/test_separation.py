"""A training run for instances ends with how each depth parts objects, in the sealed file."""

import json

from pipelines.training.results import write_results
from tests.pipelines.training.small import last, spec_of
from unetpp.data.arrow_split import Split
from unetpp.inference.instances import SEEDS, SMALLEST_PX
from unetpp.models.about import USUAL, Separation, read_about
from unetpp.models.model_file import load_model
from unetpp.network.masks import FOR_INSTANCES
from unetpp.training import separation
from unetpp.training.separation import choose_separations


def test_separation_is_chosen_on_val_at_the_images_own_sizes_for_each_depth(params, prepared, tmp_path, monkeypatch):
    spec = spec_of(params, prepared, {"targets": FOR_INSTANCES}, epochs=1)
    state = last(spec)
    write_results(state, spec, "run", tmp_path / "model", tmp_path / "reports")
    trained, about = load_model(tmp_path / "model"), read_about(tmp_path / "model")
    assert about is not None
    val = Split(prepared / f"{spec.manifest.full_val}.arrow")
    assert val.shape(0) != Split(prepared / "val.arrow").shape(0)
    assert about.info["separation"] == choose_separations(trained, val)
    for depth in about.depths:
        chosen = about.separation(depth)
        assert chosen is not None
        assert chosen.seed in SEEDS
        assert chosen.smallest_px in SMALLEST_PX
        assert about.at(depth).separation() == chosen
    assert json.loads((tmp_path / "reports" / "metrics.json").read_text())["val_iou"].keys() == {"L1", "L2"}

    # Of many images, or large ones, some that are spread evenly over val.
    seen = []

    def choose(images, *_, **__) -> Separation:
        list(images)
        return USUAL

    monkeypatch.setattr(separation, "predict_image", lambda _, image: seen.append(image.shape))
    monkeypatch.setattr(separation, "choose_separation", choose)
    for most, px, expected in ((3, 2**26, 3), (64, 2 * val[0][1].size, 2), (64, 1, 1)):
        monkeypatch.setattr(separation, "MOST_IMAGES", most)
        monkeypatch.setattr(separation, "MOST_PX", px)
        seen.clear()
        choose_separations(trained, val)
        assert len(seen) == expected * len(about.depths)


def test_a_network_of_masks_alone_has_none_and_its_file_is_as_before(params, prepared, tmp_path):
    spec = spec_of(params, prepared, epochs=1)
    write_results(last(spec), spec, "run", tmp_path / "model", tmp_path / "reports")
    about = read_about(tmp_path / "model")
    assert about is not None
    assert about.separation() is None
    assert (about.targets, about.num_outputs) == (("mask",), 1)
    assert "targets" not in about.config
    assert "separation" not in about.info
