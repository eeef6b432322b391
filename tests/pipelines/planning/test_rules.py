"""The rules on facts alone: what they choose, and that every choice is one that params.yaml takes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core.params import Params, load_params, override
from pipelines.planning.facts import Facts, Machine, facts_of
from pipelines.planning.network_size import suggest_depth, training_mib, widths_of
from pipelines.planning.rules import RULES, apply

LAPTOP = Machine(cores=4, memory_mib=16_000)
WORKSTATION = Machine(cores=32, memory_mib=128_000, gpus=2, gpu_memory_mib=80_000)
NUCLEI = Facts(
    num_images=500,
    height=256,
    width=256,
    shorter_px=256,
    longest_px=1388,
    one_size=False,
    one_shape=False,
    grey=False,
    channels=3,
    num_classes=1,
    multilabel=False,
    width_px=19,
    object_px=30,
    foreground_share=0.14,
    upright=False,
)


def facts(**changes) -> Facts:
    return Facts(**(NUCLEI.__dict__ | changes))


def values(known: Facts, machine: Machine = LAPTOP, **kept) -> dict:
    return {key: choice.value for key, choice in apply(known, machine, kept).items()}


sets = st.builds(
    facts,
    num_images=st.integers(3, 100_000),
    height=st.floats(20, 5000),
    width=st.floats(20, 5000),
    shorter_px=st.floats(20, 5000),
    one_size=st.booleans(),
    one_shape=st.booleans(),
    grey=st.booleans(),
    num_classes=st.integers(1, 30),
    width_px=st.floats(0, 2000),
    object_px=st.floats(0, 2000),
    foreground_share=st.floats(0, 1),
    upright=st.sampled_from([None, True, False]),
)
machines = st.builds(
    Machine,
    cores=st.integers(1, 128),
    memory_mib=st.floats(1000, 1e6),
    gpus=st.integers(0, 8),
    gpu_memory_mib=st.floats(6000, 1e5),
)


@settings(max_examples=40, deadline=None)
@given(sets, machines)
def test_all_choices_are_legal_together_and_have_reasons(shipped, known, machine):
    choices = apply(known, machine)
    chosen = override(shipped, {key: choice.value for key, choice in choices.items()})
    for choice in choices.values():
        assert choice.reason
        assert "nan" not in choice.reason
    crop, batch = chosen.train.crop_px, chosen.train.batch_size
    assert batch >= 4
    assert crop is None or crop <= max(32, known.shorter_px)


@pytest.fixture(scope="module")
def shipped(repository) -> Params:
    return load_params(repository / "params.yaml")


def test_every_rule_has_a_key_of_params(shipped):
    for key in RULES:
        section, name = key.split(".")
        assert name in shipped.model_dump(by_alias=True)[section], key


def test_small_things_in_large_images_are_seen_at_their_own_size():
    found = values(NUCLEI)
    assert (found["prepare.size"], found["train.crop_px"]) == (None, 128)
    assert values(facts(height=2000, width=3000, shorter_px=2000, width_px=60, object_px=80))["train.crop_px"] == 256


def test_what_context_tells_is_seen_whole_by_its_longer_side():
    found = values(facts(height=375, width=500, num_classes=21, one_shape=True))
    assert (found["prepare.size"], found["prepare.fit"]) == ([192, 256], "pad")
    mixed = values(facts(height=375, width=500, num_classes=21, one_shape=False))
    assert mixed["prepare.size"] == 256
    assert values(facts(height=375, width=500, num_classes=21, one_shape=True), WORKSTATION)["prepare.size"] == [
        384,
        512,
    ]


def test_the_depth_follows_neither_specks_nor_the_number_of_objects():
    assert suggest_depth(NUCLEI, 128)[0] == 4
    assert suggest_depth(facts(num_classes=11, width_px=3, object_px=2), 240)[0] == 4
    assert suggest_depth(facts(width_px=100), 256)[0] == 4


@pytest.mark.parametrize(("width", "depth"), [(0.5, 2), (3, 2), (5, 3), (9, 4), (200, 4)])
def test_hairs_need_no_deep_level(width, depth):
    assert suggest_depth(facts(width_px=width, height=1000, width=1000), 256)[0] == depth


def test_a_small_side_limits_the_depth():
    assert [suggest_depth(NUCLEI, side)[0] for side in (16, 32, 64, 128)] == [2, 3, 4, 4]


def test_what_does_not_fit_in_memory_is_computed_in_parts():
    tight = Machine(cores=4, memory_mib=1500)
    found = values(facts(height=256, width=256, num_classes=4), tight)
    widths, parts = found["search.widths"][0], found["train.accumulate"]
    assert training_mib(widths, 8 // parts, 256**2) < training_mib(widths, 8, 256**2)
    assert "train.accumulate" not in values(NUCLEI)


def test_a_gpu_takes_the_papers_widths_and_larger_batches():
    found = values(NUCLEI, WORKSTATION)
    assert found["search.widths"] == [widths_of(4)]
    assert (found["train.use_gpu"], found["train.num_workers"], found["train.batch_size"]) == (True, 2, 32)
    assert found["train.loader_workers"] == 4


def test_up_and_down_decide_flips_and_turns():
    assert [values(facts(upright=one)).get("augment.flips") for one in (True, False, None)] == [
        "horizontal",
        "all",
        None,
    ]
    assert [values(facts(upright=one)).get("augment.quarter_turns") for one in (True, False)] == [False, True]
    assert values(facts(upright=False, sideways=True))["augment.quarter_turns"] is False


def test_prepared_data_have_the_facts_of_their_fingerprint(fingerprints):
    known = facts_of(fingerprints["one size"])
    assert (known.height, known.width, known.one_size, known.grey) == (160, 160, True, True)
    assert known.upright is None
