"""Laws of the gates: what is steady passes, and each kind of unsteadiness fails its own gate alone."""

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.evaluation.gates import check_gates
from pipelines.evaluation.predictor import Predictor
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.models.model_file import Trained


class Bright(nn.Module):
    """Foreground is what lies above the middle of the image's own range: steady in every respect."""

    depth, depths, num_classes, multilabel, in_channels = 1, (1,), 1, False, 3
    encoder = None
    task = 1, False, True

    @property
    def num_outputs(self):
        return self.task[0]

    def config(self):
        return {"widths": [1, 1], "background": self.task[2]}

    def forward(self, image):
        channel = image[:, :1]
        low, high = channel.amin(dim=(2, 3), keepdim=True), channel.amax(dim=(2, 3), keepdim=True)
        found = (channel > (low + high) / 2) & (high > low + 1e-3)
        return (self.change(found, channel).float() * 40 - 20,)

    def change(self, found, _channel, /):
        return found


class Sided(Bright):
    """Sees nothing in the left half, so that mirrored images have other masks."""

    def change(self, found, _channel):
        found = found.clone()
        found[..., : found.shape[-1] // 2] = False
        return found


class Gridded(Bright):
    """Sees every eighth column alone, counted from the image's edge."""

    def change(self, found, _channel):
        columns = torch.arange(found.shape[-1])
        return found & ((columns % 8 == 0) | (columns % 8 == 7))


class Exposed(Bright):
    """Sees all, or nothing where the image is lopsided: gamma and clipping change that."""

    limit: float

    def change(self, found, channel):
        lopsided = (channel**3).mean(dim=(2, 3), keepdim=True) > self.limit
        return found & lopsided


class Imagining(Bright):
    """Finds foreground in images that have none."""

    def change(self, found, channel):
        return found | (channel.std(dim=(2, 3), keepdim=True) < 1e-3)


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    rows, columns = np.indices((48, 48))
    with SplitWriter(tmp_path / "test.arrow") as writer:
        for number in range(6):
            # A disc in the middle of a mirror-like scene: masks of the steady network are the disc everywhere.
            disc = (rows - 23.5) ** 2 + (columns - 23.5) ** 2 < (12 + number) ** 2
            image = np.where(disc, 140, 40)[..., None] + rng.integers(0, 12, (48, 48, 1))
            writer.add(f"{number}", "a", image.repeat(3, axis=2).astype(np.uint8), disc.astype(np.uint8))
    return Split(tmp_path / "test.arrow")


def check(network, split, params, augment=None, **changes):
    gates = params.evaluate.gates.model_copy(update=changes)
    predict = Predictor(Trained(network, 48, {"params": {"augment": augment}}), torch.device("cpu"))  # type: ignore[arg-type]
    return {row["name"]: row for row in check_gates(predict, split, gates, (32, 32), 4)["L1"]}


def test_what_is_steady_passes_every_gate(split, params):
    found = check(Bright(), split, params)
    assert list(found) == ["flips", "shift", "brightness", "empty"]
    assert all(row["passed"] for row in found.values())
    assert found["flips"]["value"] == found["shift"]["value"] == 1
    assert found["empty"]["value"] == 0
    assert found["brightness"]["value"] > 0.95
    assert "on 6 test images" in found["flips"]["what"]


@pytest.mark.parametrize(("network", "fails"), [(Sided(), "flips"), (Gridded(), "shift"), (Imagining(), "empty")])
def test_unsteadiness_fails_its_own_gate(split, params, network, fails):
    found = check(network, split, params, shift_px=3)
    assert not found[fails]["passed"]
    assert found["brightness"]["passed"]
    if fails == "flips":
        assert found["flips"]["value"] < 0.1
        assert found["shift"]["passed"]
    if fails == "empty":
        assert found["empty"]["value"] == 1
        assert found["flips"]["passed"]
        assert found["shift"]["passed"]


def test_a_model_that_light_confuses_fails_and_the_worst_change_is_named(split, params):
    network = Exposed()
    network.limit = float("-inf")
    assert check(network, split, params)["brightness"]["passed"]

    seen: list[torch.Tensor] = []

    class Recorder(Exposed):
        def change(self, found, channel):
            seen.append((channel**3).mean(dim=(2, 3)))
            return found

    check(Recorder(), split, params)
    network.limit = torch.cat(seen).median().item()
    row = check(network, split, params)["brightness"]
    assert not row["passed"]
    assert any(change in row["what"] for change in ("brighter", "darker", "contrast", "gamma"))


def test_a_value_at_its_limit_passes_and_one_beyond_fails(split, params):
    assert check(Bright(), split, params, flips=1.0)["flips"]["passed"]
    assert check(Sided(), split, params, flips=0.0)["flips"]["passed"]
    assert check(Imagining(), split, params, empty=1.0)["empty"]["passed"]
    assert not check(Imagining(), split, params, empty=0.99)["empty"]["passed"]


def test_images_are_spread_over_the_split_and_no_more_than_asked_for(split, params):
    found = check(Bright(), split, params, num_images=1)
    assert "on 1 test image" in found["flips"]["what"]
    assert "on 1 test images" not in found["flips"]["what"]


class Blind(Bright):
    """Finds nothing, ever."""

    def change(self, found, _channel):
        return found & False


def test_what_finds_nothing_passes_no_gate_by_that(split, params):
    found = check(Blind(), split, params)
    for name in ("flips", "shift", "brightness"):
        assert (found[name]["value"], found[name]["passed"]) == (None, False)
    assert "on 6 test images, in none of which it finds anything" in found["flips"]["what"]
    assert found["empty"]["passed"]


class Scene(Bright):
    """The same of two classes, of which the first is no background."""

    num_classes, task = 2, (2, False, False)

    def forward(self, image):
        [found] = super().forward(image)
        return (torch.cat([-found, found], dim=1),)


def test_the_gate_of_empty_images_is_off_where_they_have_no_right_answer(split, params):
    found = check(Scene(), split, params)
    assert [row["passed"] for row in found.values()] == [True, True, True, None]
    assert found["flips"]["value"] == 1
    assert found["empty"]["value"] is None
    assert "off: class 0 is a class like the others" in found["empty"]["what"]
    predict = Predictor(Trained(Imagining(), 48), torch.device("cpu"))  # type: ignore[arg-type]
    half, more = (check_gates(predict, split, params.evaluate.gates, (32, 32), 4, one)["L1"][-1] for one in (0.5, 0.51))
    assert (half["passed"], more["passed"]) == (False, None)
    assert "off: 51% of the train pixels are foreground" in more["what"]


def test_an_image_smaller_than_the_shift_is_moved_as_far_as_it_goes(tmp_path, params):
    with SplitWriter(tmp_path / "t") as writer:
        image = np.full((2, 40, 3), 9, np.uint8)
        image[:, 20:] = 200
        writer.add("a", "a", image, np.zeros((2, 40), np.uint8))
    assert check(Bright(), Split(tmp_path / "t"), params, shift_px=5)["shift"]["value"] == 1


def test_the_gate_of_flips_asks_for_what_augmentation_trained_and_is_off_without_any(split, params):
    def row(flips, quarter_turns):
        return check(Sided(), split, params, {"flips": flips, "quarter_turns": quarter_turns})["flips"]

    assert "worst of flip sideways, flip upside down, quarter turn" in row("all", True)["what"]
    assert not row("horizontal", False)["passed"]
    assert "the worst of flip sideways, on" in row("horizontal", False)["what"]
    assert row("vertical", False)["passed"]  # its two sides are left and right
    assert "the worst of quarter turn, on" in row("none", True)["what"]
    off = row("none", False)
    assert (off["value"], off["passed"]) == (None, None)
    assert off["what"].startswith("off: augmentation neither mirrored nor turned")
