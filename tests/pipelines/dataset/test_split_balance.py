"""Kinds over the splits: what is badly divided is told with numbers, and another salt is proposed once."""

import numpy as np

from pipelines.core.params import load_params
from pipelines.dataset import split_balance as home
from pipelines.dataset.split_balance import Balance, propose_salt
from pipelines.dataset.splits import join, place
from tests.conftest import REPOSITORY

PARAMS = load_params(REPOSITORY / "params.yaml").prepare
KINDS = ["tissue"] * 12 + ["fluorescence"] * 300


def members_of(kinds):
    return join([f"{kind} {n}" for n, kind in enumerate(kinds)], [])


def tries(wanted):
    """Salts with a split that is, or is not, at fault."""
    members = members_of(KINDS)
    for number in range(200):
        params = PARAMS.model_copy(update={"salt": f"try {number}"})
        found = Balance.of(KINDS, place(members, params), params)
        if bool(found.faults()) == wanted:
            yield params, found, members


def test_a_kind_that_misses_a_split_is_told_with_the_numbers():
    _, found, _ = next(one for one in tries(True) if not one[1].counts["tissue"]["val"])
    counts = found.counts["tissue"]
    assert sum(counts.values()) == 12
    (line,) = found.faults()
    assert line.startswith("12 tissue images, with those expected by prepare.shares in parentheses: ")
    assert f"{counts['train']} in train (8.4), 0 in val (1.2), {counts['test']} in test (2.4)" in line


def test_what_chance_does_to_a_handful_is_not_told():
    params, found, _ = next(tries(False))
    assert found.score()[0] == 0
    few = Balance(found.shares, {"tissue": {"train": 4, "val": 0, "test": 0}})
    assert few.faults() == []
    one_off = Balance(found.shares, {"tissue": {"train": 5, "val": 2, "test": 1}})
    assert one_off.faults() == []
    assert Balance(found.shares, {"tissue": {"train": 50, "val": 30, "test": 20}}).faults() != []
    assert params.salt.startswith("try")


def test_the_proposed_salt_is_the_best_of_those_tried_and_always_the_same(monkeypatch):
    monkeypatch.setattr(home, "SALTS_TRIED", 40)
    params, before, members = next(tries(True))
    proposed = propose_salt(KINDS, members, params)
    assert proposed == propose_salt(KINDS, members, params)
    assert proposed is not None
    salt, after = proposed
    scores = [Balance.of(KINDS, place(members, params, f"{params.salt}-{n}"), params).score() for n in range(1, 41)]
    assert after.score() == min(scores) < before.score()
    taken = params.model_copy(update={"salt": salt})
    assert Balance.of(KINDS, place(members, taken), taken) == after


def test_where_none_is_better_none_is_proposed(monkeypatch):
    monkeypatch.setattr(home, "SALTS_TRIED", 0)
    params, _, members = next(tries(True))
    assert propose_salt(KINDS, members, params) is None


def test_many_groups_are_tried_with_fewer_salts(monkeypatch):
    tried = []
    monkeypatch.setattr(home, "GROUPS_TRIED", 10 * len(KINDS))
    monkeypatch.setattr(home, "place", lambda members, params, *salt: tried.append(salt) or place(members, params))
    propose_salt(KINDS, members_of(KINDS), PARAMS)
    assert len(tried) == 11  # as it is, and ten others


def test_with_folds_every_fold_counts():
    params = PARAMS.model_copy(update={"folds": 4, "fold": 1})
    kinds = ["a", "b"] * 1000
    found = Balance.of(kinds, place(members_of(kinds), params), params)
    assert list(found.shares) == ["fold 0", "fold 1", "fold 2", "fold 3", "test"]
    assert np.isclose(sum(found.shares.values()), 1)
    for counts in found.counts.values():
        assert sum(counts.values()) == 1000
        assert all(abs(counts[part] - 1000 * share) < 60 for part, share in found.shares.items())
    assert found.faults() == []
