"""Advice follows the sizes of objects, the images, and memory; its commands are ones that params.yaml takes."""

import re
import shlex

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.params import Params
from pipelines.dataset.object_sizes import count_sizes
from pipelines.dataset.suggestions import Suggestion, crop_px, largest_batch, suggest_depth, widths_of
from tests.conftest import REPOSITORY
from unetpp.network.model import NestedUNet
from unetpp.network.profiling import estimate_training_mib

sizes_px = st.lists(st.floats(1, 500), min_size=1, max_size=60).map(np.array)


@given(sizes_px, st.floats(1, 4), st.integers(16, 2048))
def test_larger_objects_never_suggest_a_shallower_network(diameters, factor, side_px):
    depths = [suggest_depth(count_sizes(each), side_px) for each in (diameters, diameters * factor)]
    assert depths[0] <= depths[1]


@given(sizes_px, st.integers(16, 2048), st.integers(0, 2048))
def test_larger_images_never_suggest_a_shallower_network(diameters, side_px, more):
    sizes = count_sizes(diameters)
    assert suggest_depth(sizes, side_px) <= suggest_depth(sizes, side_px + more)


@given(sizes_px, st.integers(64, 2048))
def test_at_most_a_tenth_of_the_objects_are_smaller_than_a_pixel_of_the_suggested_depth(diameters, side_px):
    depth = suggest_depth(count_sizes(diameters), side_px)
    if depth > 1:
        assert np.mean(diameters < 2**depth) <= 0.1
    if depth < 6 and side_px >= 4 * 2 ** (depth + 1):
        assert np.mean(diameters < 2 ** (depth + 1)) > 0.1


@pytest.mark.parametrize(("diameter", "depth"), [(3, 1), (4.5, 2), (8.5, 3), (17, 4), (33, 5), (70, 6), (400, 6)])
def test_objects_of_one_size_suggest_the_depth_whose_pixel_they_fill(diameter, depth):
    assert suggest_depth(count_sizes(np.full(10, diameter)), side_px=2048) == depth


def test_a_small_side_limits_the_depth():
    sizes = count_sizes(np.full(10, 200.0))
    assert [suggest_depth(sizes, side) for side in (16, 32, 63, 64, 96, 255, 256)] == [2, 3, 3, 4, 4, 5, 6]


@pytest.mark.parametrize("memory_gib", [2, 8, 24])
def test_the_largest_batch_fits_and_twice_as_much_does_not(memory_gib):
    widths = widths_of(4)
    batch = largest_batch(widths, 256, memory_gib)
    network = NestedUNet(widths)
    assert estimate_training_mib(network, batch, 256) <= memory_gib * 1024
    assert estimate_training_mib(network, 2 * batch, 256) > memory_gib * 1024


def test_no_batch_fits_into_too_little_memory():
    assert largest_batch(widths_of(4), 4096, 1) == 0


@given(st.floats(20, 3000), st.floats(2, 800))
def test_a_crop_is_no_larger_than_most_images_and_whole_in_32s(shorter, large):
    crop = crop_px({"shorter_px": {"q25": shorter}}, {"p90": large})
    assert crop % 32 == 0
    assert 32 <= crop <= max(32, min(512, shorter))


def test_a_command_is_one_that_a_shell_hands_on_whole():
    line = Suggestion("x", ("search.widths=[[8,16],[8,16,32]]", "prepare.size=null"), "why").command
    assert shlex.split(line)[3:] == ["-S", "search.widths=[[8,16],[8,16,32]]", "-S", "prepare.size=null"]


def apply(command: str, fingerprint: dict) -> None:
    """params.yaml as shipped, but for the sizes of these data, with the changes of a `dvc exp run -S ...` line."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    values["prepare"]["size"], values["train"]["crop_px"] = (
        fingerprint["prepared"]["size"],
        fingerprint["advice"]["side_px"],
    )
    words = shlex.split(command)
    assert words[:3] == ["dvc", "exp", "run"]
    for change in words[4::2]:
        path, _, value = change.partition("=")
        section, key = path.split(".")
        assert key in values[section]
        values[section][key] = yaml.safe_load(value)
    Params.model_validate(values)


def test_every_suggestion_is_a_change_that_the_params_allow(fingerprints):
    commands = {}
    for fingerprint in fingerprints.values():
        for one in fingerprint["advice"]["suggestions"]:
            commands.setdefault(one["what"], []).append(one["command"])
            apply(one["command"], fingerprint)
            assert one["reason"].endswith(".")
            assert not re.search(r"\b(nan|inf)\b", one["reason"])
    wanted = {"Size", "Crop", "Channels", "Class weights", "Crops with foreground", "Depth and widths", "Batch"}
    assert set(commands) == wanted
