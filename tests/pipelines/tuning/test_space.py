"""The space of a search: what it holds, what is drawn from it, and what is refused before any trial."""

import json
import math

import pytest

from pipelines.core.params import load_params, override
from pipelines.tuning.candidate_costs import count_costs
from pipelines.tuning.space import decode, make_candidate, mutable, read_space
from tests.pipelines.tuning.declared import ALL, declared
from unetpp.data.manifest import read_manifest
from unetpp.errors import UserError


def test_widths_that_grow_stand_beside_those_listed_and_none_twice():
    grow = {"max_depth": 3, "base": [4, 8], "growth": [1.5, 2]}
    space = read_space(declared(widths=[[4, 8, 16, 32], [5, 5]], grow=grow))
    assert space.widths == [(4, 8, 16, 32), (5, 5), (4, 6, 9, 14), (8, 12, 18, 27), (8, 16, 32, 64)]
    assert space.params.search.deepest == 3


def test_encoders_and_targets_are_searched_beside_widths_and_each_has_its_costs(prepared):
    names, targets = [None, "tf_efficientnet_lite0"], [["mask"], ["mask", "boundary", "distance"]]
    declaration = {"model.encoder": names, "model.targets": targets, "train.encoder_lr": [0.1]}
    space = read_space(declared(space=declaration))
    assert {(one.widths, one.params.model.encoder, one.params.model.targets) for one in space.networks} == {
        (widths, name, tuple(some)) for widths in ((4, 6), (4, 6, 8)) for name in names for some in targets
    }
    costs = count_costs(space, read_manifest(prepared), (32, 32))
    assert len({row["L1"]["parameters"] for row in costs.values()}) == 4  # L1 is the same for both widths
    assert mutable(space) == ["train.encoder_lr"]


def test_a_trial_freezes_an_encoder_for_the_share_of_its_epochs_that_training_does():
    ends = [(30, 10, 3, 1), (30, 3, 3, 0), (30, 30, 3, 3), (2, 1, 5, 2)]
    for epochs, frozen, short, expected in ends:
        values = {"train.epochs": epochs, "train.freeze_encoder_epochs": frozen, "search.epochs": short}
        params = override(declared(), values | {"model.encoder": "resnet18"})
        assert read_space(params).networks[0].params.train.freeze_encoder_epochs == expected


def test_a_network_of_one_head_has_a_candidate_for_each_depth():
    params = declared(widths=[], grow={"max_depth": 3, "base": [4], "growth": [2]})
    plain = params.model_copy(
        update={"model": params.model.model_copy(update={"skips": "plain", "deep_supervision": False})}
    )
    assert read_space(params).widths == [(4, 8, 16, 32)]
    assert read_space(plain).widths == [(4, 8), (4, 8, 16), (4, 8, 16, 32)]


def test_a_grid_is_every_combination_once():
    params = declared(space={"train.learning_rate": ["1e-3", 0.001, 3e-3], "train.class_weights": [None, [1, 2]]})
    space = read_space(params)
    assert len(space.candidates) == space.num_trials == 2 * 2 * 2  # 1e-3 and 0.001 are the same rate
    assert {one.widths for one in space.candidates} == {(4, 6), (4, 6, 8)}
    assert [one.values["train.class_weights"] for one in space.candidates[:2]] == [None, [1.0, 2.0]]
    assert [one.params.train.class_weights for one in space.candidates[:2]] == [None, (1.0, 2.0)]


def test_the_same_seed_draws_the_same_trials_and_each_within_its_range():
    ranges = {
        "train.learning_rate": {"log": ["1e-4", "1e-2"]},
        "augment.hue": {"int": [0, 3]},
        "model.dropout": {"uniform": [0, 0.5]},
    }
    params = declared(space=ranges, searcher="random", num_trials=200)
    configs = read_space(params).configs
    assert configs is not None
    assert configs == read_space(params).configs
    other = read_space(declared(space=ranges, searcher="random", num_trials=200, seed=1)).configs
    assert configs != other
    values = [decode(config) for config in configs]
    assert {one["augment.hue"] for one in values} == {0, 1, 2, 3}
    assert all(0 <= one["model.dropout"] <= 0.5 for one in values)
    rates = [math.log10(one["train.learning_rate"]) for one in values]
    assert min(rates) >= -4
    assert max(rates) <= -2
    assert 60 < sum(rate < -3 for rate in rates) < 140  # evenly by order of magnitude
    assert make_candidate(params, values[0]).params.train.learning_rate == values[0]["train.learning_rate"]


def test_random_never_draws_the_same_trial_twice():
    params = declared(space={"train.loss": ["ce_dice", "lovasz"]}, searcher="random", num_trials=50)
    configs = read_space(params).configs or []
    assert len(configs) == 4 == len({json.dumps(config) for config in configs})


def test_a_trial_is_short_and_has_its_own_values():
    params = declared(space={"train.loss": ["lovasz"]}, epochs=2)
    train = read_space(params).candidates[0].params.train
    assert (train.epochs, train.num_workers, train.init) == (2, 1, None)
    assert train.loss == "lovasz"
    assert train.learning_rate == params.train.learning_rate


def test_pbt_changes_only_what_a_training_may_change():
    space = {"train.learning_rate": {"log": [1e-4, 1e-2]}, "model.norm": ["batch", "group"], "augment.hue": [0, 9]}
    params = declared(space=space, searcher="random", num_trials=4, scheduler="pbt")
    assert mutable(read_space(params)) == ["train.learning_rate", "augment.hue"]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"space": {"train.learnin_rate": [1]}},
            r"search\.space\.train\.learnin_rate: .*did you mean train\.learning_",
        ),
        ({"space": {"learning_rate": [1]}}, r"did you mean train\.learning_rate\?"),
        ({"space": {"train.learning_rate": [-1]}}, r"space\.train\.learning_rate: .*greater than 0, found -1"),
        ({"space": {"train.loss": ["dice"]}}, r"train\.loss: .*found 'dice'"),
        ({"space": {"prepare.size": [64, 96]}}, r"prepare\.size: a trial trains on the prepared data"),
        ({"space": {"train.epochs": [2, 4]}}, r"train\.epochs: must be the same for all trials; set search\.epochs"),
        ({"space": {"train.learning_rate": {"log": [1e-4, 1e-2]}}}, r"searcher is grid, which needs a list"),
        ({"space": {"model.skips": ["plain", "dense"]}}, r"plain U-Net has no shallow heads"),
        (
            {"space": {"train.loss": ["lovasz", "ce_dice"], "train.class_weights": [None, [1, 2]]}},
            r"not legal together.*class_weights weigh a cross-entropy",
        ),
        ({"scheduler": "pbt"}, r"search\.space has none that can change so"),
    ],
    ids=str,
)
def test_what_is_no_space_is_refused_by_its_key(search, message):
    with pytest.raises(UserError, match=message):
        read_space(declared(**search))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"widths": []}, "the space is empty"),
        ({"space": {"train.loss": []}}, "expected a list of choices or one of"),
        ({"space": {"train.learning_rate": {"log": [0, 1]}}}, "of log from above 0"),
        ({"space": {"train.learning_rate": {"log": [1e-2, 1e-4]}}}, "from a lower to a higher number"),
        ({"space": {"augment.hue": {"int": [0, 2.5]}}}, "with two numbers"),
        ({"searcher": "random"}, "search.num_trials is null"),
        ({"searcher": "nsga2", "num_trials": 4}, "set search.objective=front"),
        ({"scheduler": "asha", "searcher": "tpe", "num_trials": 4, "objective": "front"}, "one number"),
        ({"scheduler": "pbt", "num_workers": 2}, "search.num_workers to 1"),
        ({"scheduler": "asha", "grace_epochs": 9}, "no trial would be compared"),
    ],
    ids=str,
)
def test_sections_that_contradict_themselves_are_refused_when_params_are_read(tmp_path, search, message):
    import yaml

    values = ALL.model_dump(mode="json", by_alias=True)
    values["search"] |= search
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as refused:
        load_params(tmp_path / "params.yaml")
    assert message in str(refused.value)
    assert "search" in str(refused.value)


def test_params_are_overridden_by_dotted_key_and_checked_as_a_whole():
    changed = override(ALL, {"train.batch_size": 4, "augment.hue": 0, "register.model_name": "other"})
    assert (changed.train.batch_size, changed.augment.hue, changed.registry.model_name) == (4, 0, "other")
    assert override(ALL, {}) == ALL
    with pytest.raises(UserError, match=r"batch_size is 7 .* multiple of train\.num_workers"):
        override(ALL, {"train.batch_size": 7})
