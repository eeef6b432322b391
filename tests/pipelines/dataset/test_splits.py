"""Splits: a function of the data alone. Adding files moves no old one, but for near-duplicates, toward test."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.params import load_params
from pipelines.core.sections.prepare import Shares
from pipelines.core.tables import write_rows
from pipelines.dataset.splits import SPLITS, check_apart, find_split, join, place, position
from tests.conftest import REPOSITORY
from unetpp.data.arrow_split import SplitWriter
from unetpp.errors import UserError

PARAMS = load_params(REPOSITORY / "params.yaml").prepare
SHARES = Shares(train=0.6, val=0.2, test=0.2)

uniform = st.floats(0, 1, exclude_max=True)
names = st.text(min_size=1, max_size=6)
folds = st.one_of(st.none(), st.integers(2, 9))


@st.composite
def shares(draw):
    train, val, test = (draw(st.integers(1, 20)) for _ in range(3))
    whole = train + val + test
    return Shares(train=train / whole, val=val / whole, test=test / whole)


@st.composite
def sets(draw):
    """Groups of an old and a new set of samples, and pairs of near-duplicates within the old and over both."""
    groups = draw(st.lists(names, min_size=2, max_size=12))
    num_old = draw(st.integers(1, len(groups)))

    def pairs(n):
        return st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=6)

    return groups, num_old, draw(pairs(num_old)), draw(pairs(len(groups)))


def params_of(shares, k, salt="s"):
    return PARAMS.model_copy(update={"shares": shares, "folds": k, "salt": salt})


def rank(one) -> float:
    """How near to test a place is."""
    return {"train": 0.0, "val": 1.0, "test": 2.0}[one.split] if one.fold is None else one.fold / 100


def test_the_position_is_uniform_and_another_salt_is_another_one():
    found = np.array([[position(salt, str(n)) for n in range(4000)] for salt in ("a", "b")])
    assert found.min() >= 0
    assert found.max() < 1
    for u in found:
        assert np.histogram(u, 8, (0, 1))[0] / 4000 == pytest.approx(np.full(8, 1 / 8), abs=0.025)
    assert abs(np.corrcoef(found)[0, 1]) < 0.05


def test_the_position_is_that_of_the_first_release():
    """Written by version 0.1.0: another number would be another split of everybody's data."""
    assert position("unetpp", "nuclei_00000") == 0.3934970964852026


@given(shares=shares())
def test_every_kind_gets_the_shares_for_the_hash_knows_nothing_of_it(shares):
    found = [find_split(n / 2000, shares)[0] for n in range(2000)]
    assert [found.count(name) / 2000 for name in SPLITS] == pytest.approx(
        [shares.train, shares.val, shares.test], abs=0.001
    )
    assert found == sorted(found, key=SPLITS.index)  # test is the upper end


@given(groups=st.lists(names, min_size=1, max_size=12), more=st.lists(names, max_size=12), shares=shares(), k=folds)
def test_a_split_is_a_function_of_the_group_and_new_groups_move_none(groups, more, shares, k):
    params = params_of(shares, k)
    alone = place(join(groups, []), params)
    together = place(join(groups + more, []), params)
    assert together[: len(groups)] == alone
    by_group = {}
    for group, one in zip(groups + more, together, strict=True):
        assert one.group == group
        assert by_group.setdefault(group, one) == one


@given(sets=sets(), shares=shares(), k=folds)
def test_a_new_near_duplicate_moves_old_images_toward_test_alone_and_nothing_else_moves_any(sets, shares, k):
    groups, num_old, old_pairs, new_pairs = sets
    params = params_of(shares, k)
    before = place(join(groups[:num_old], old_pairs), params)
    members = join(groups, old_pairs + new_pairs)
    after = place(members, params)[:num_old]
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        assert rank(new) >= rank(old) if k is None else position("s", new.group) >= position("s", old.group)
        if old.split == "test":
            assert new.split == "test"
        if members[index] == join(groups[:num_old], old_pairs)[index]:
            assert new == old


@given(sets=sets(), shares=shares(), k=folds)
def test_what_is_joined_stands_where_the_highest_of_its_members_stands(sets, shares, k):
    groups, _, some, more = sets
    params = params_of(shares, k)
    members = join(groups, some + more)
    places = place(members, params)
    for one, other in some + more:
        assert members[one] is members[other]
        assert places[one] == places[other]
    for names, found in zip(members, places, strict=True):
        assert position("s", found.group) == max(position("s", name) for name in names)
        # split.csv alone tells why: the hash of its column `group`.
        assert (found.split, found.fold) == find_split(position("s", found.group), shares, k, params.fold)


@given(groups=st.lists(names, min_size=1, max_size=20), pairs=st.data())
def test_joined_groups_are_the_connected_components(groups, pairs):
    index = st.integers(0, len(groups) - 1)
    pairs = pairs.draw(st.lists(st.tuples(index, index), max_size=15))
    components = {name: {name} for name in groups}
    for _ in groups:
        for one, other in pairs:
            both = components[groups[one]] | components[groups[other]]
            for name in both:
                components[name] = components[name] | both
    assert join(groups, pairs) == [sorted(components[group]) for group in groups]


@given(u=uniform, shares=shares(), k=st.integers(2, 9))
def test_folds_leave_test_as_it_is_and_each_image_is_val_in_one_of_them(u, shares, k):
    plain, _ = find_split(u, shares)
    found = [find_split(u, shares, k, fold) for fold in range(k)]
    assert {split == "test" for split, _ in found} == {plain == "test"}
    if plain == "test":
        assert {fold for _, fold in found} == {None}
        return
    (own,) = {fold for _, fold in found}
    assert [split == "val" for split, _ in found] == [fold == own for fold in range(k)]


@given(shares=shares(), k=st.integers(2, 9))
def test_folds_are_of_equal_size(shares, k):
    found = [find_split(n / 5000, shares, k)[1] for n in range(5000)]
    rest = (shares.train + shares.val) * 5000 / k
    assert [found.count(fold) for fold in range(k)] == pytest.approx([rest] * k, abs=2)


@pytest.fixture
def written(tmp_path):
    """A prepared folder of four images, which may be written again with other splits."""

    def write(arrow, table, duplicates=()):
        for split in SPLITS:
            with SplitWriter(tmp_path / f"{split}.arrow") as writer:
                for id in sorted(id for id, where in arrow.items() if where == split):
                    writer.add(id, "kind", np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2), np.uint8))
        write_rows(tmp_path / "split.csv", ("id", "split"), table.items())
        write_rows(tmp_path / "duplicates.csv", ("id", "other", "distance", "correlation"), duplicates)
        return tmp_path

    return write


GOOD = {"a": "train", "b": "train", "c": "val", "d": "test"}
OWN = {id: id for id in GOOD}


def test_the_gate_lets_pass_what_stands_apart(written):
    folder = written(GOOD, GOOD, [("a", "b", 0, 1.0)])
    check_apart(folder, OWN | {"b": "a"}, [("a", "b", "the same pixels")])


@pytest.mark.parametrize(
    ("change", "groups", "pairs", "duplicates", "message"),
    [
        ({}, OWN | {"d": "a"}, [], [], r"group 'a' of 2 images is in train and test: a in train, d in test"),
        ({}, OWN, [("a", "c", "the same pixels")], [], r"a in train and c in val are the same pixels"),
        ({}, OWN, [], [("b", "d", 2, 0.97)], r"b in train and d in test are near-duplicates, distance 2, .* 0\.97"),
        ({"b": "test"}, OWN, [], [], r"group 'b' of 1 images is in train and test"),
        ({"b": "test"}, OWN | {"b": "a"}, [], [], r"group 'a' of 2 images is in train and test"),
    ],
    ids=["group", "same pixels", "near-duplicates", "table and file disagree", "table alone"],
)
def test_the_gate_fails_on_what_was_really_written_and_lists_it(written, change, groups, pairs, duplicates, message):
    folder = written(GOOD, GOOD | change, duplicates)
    with pytest.raises(UserError, match=message) as caught:
        check_apart(folder, groups, pairs)
    assert re.match(r".*: found 1 groups or pairs of images that are in two splits", str(caught.value))


def test_the_gate_reads_the_arrow_files_and_not_the_table_alone(written):
    with pytest.raises(UserError, match="group 'b'"):
        check_apart(written(GOOD | {"b": "val"}, GOOD), OWN, [])


def test_the_gate_lists_twenty_and_counts_the_rest(written):
    many = {f"{n:02}": "train" if n < 30 else "test" for n in range(60)}
    pairs = [(f"{n:02}", f"{n + 30:02}", "alike") for n in range(30)]
    with pytest.raises(UserError, match=r"(?s)found 30 groups or pairs .*\n  and 10 more$") as caught:
        check_apart(written(many, many), {}, pairs)
    assert str(caught.value).count("alike") == 20
