"""Groups: what belongs together by its name, by a table, or by its layout."""

from pathlib import Path

import pytest

from pipelines.core.sections.prepare import Groups
from pipelines.dataset.groups import find_groups
from pipelines.dataset.layouts import Sample
from unetpp.errors import UserError


def samples(*ids, volume=None):
    return [Sample(id, Path(f"images/{id}.png"), (), volume) for id in ids]


def test_a_sample_is_a_group_of_its_own_and_slices_of_a_volume_are_one():
    found = find_groups(
        samples("a") + samples("v@0000", "v@0001", volume="v"), Groups(pattern=None, table=None, sequences="auto")
    )
    assert found == ["a", "v", "v"]


def test_a_pattern_is_searched_in_the_id():
    found = find_groups(
        samples("site1/p3_01", "site1/p3_02", "site2/p14_01"), Groups(pattern=r"/(p\d+)_", table=None, sequences="auto")
    )
    assert found == ["p3", "p3", "p14"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"^(p\d+)_", r"prepare\.groups\.pattern: found the id 'x_1', in which '\^\(p\\\\d\+\)_' matches nothing"),
        (r"^(p\d+)?_?", r"prepare\.groups\.pattern: found the id 'x_1', .* has an empty group"),
    ],
)
def test_an_id_that_the_pattern_does_not_match_is_named(pattern, message):
    with pytest.raises(UserError, match=message):
        find_groups(samples("p1_1", "x_1"), Groups(pattern=pattern, table=None, sequences="auto"))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return Groups(pattern=None, table=str(path), sequences="auto")


def test_a_table_gives_groups_whatever_its_other_columns_and_tells_ids_that_it_knows_alone(tmp_path, capsys):
    groups = write(tmp_path / "t.csv", "\ufeffage,group,id\n61,p1,a\n61,p1,b\n44,p2,c/d\n50,p3,gone\n")
    assert find_groups(samples("a", "b", "c/d"), groups) == ["p1", "p1", "p2"]
    assert "1 of 4 ids match no image of this dataset, such as gone" in capsys.readouterr().out


def test_slices_go_by_their_own_row_or_by_that_of_their_volume(tmp_path):
    groups = write(tmp_path / "t.csv", "id,group\nv,p1\nw@0001,p2\nw,p3\n")
    assert find_groups(samples("v@0000", "v@0001", volume="v"), groups) == ["p1", "p1"]
    assert find_groups(samples("w@0000", "w@0001", volume="w"), groups) == ["p3", "p2"]


def test_ids_without_a_row_are_counted_and_the_first_are_named(tmp_path):
    groups = write(tmp_path / "t.csv", "id,group\na,p1\n")
    message = r"t\.csv: found no row for 7 of 8 ids: 0, 1, 2, 3, 4 and 2 more; expected a row id,group"
    with pytest.raises(UserError, match=message):
        find_groups(samples("a", *map(str, range(7))), groups)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found the columns none"),
        ("name,group\na,p1\n", "found the columns name, group; expected a CSV file with the columns id and group"),
        ("id,group\na,p1\na,p2\n", "line 3: found 'a' in group 'p2' and earlier in 'p1'"),
        ("id,group\na,\n", "line 2: found an empty id or group"),
        ("id,group\na\n", "line 2: found an empty id or group"),
    ],
    ids=["empty", "columns", "two groups", "empty cell", "missing cell"],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(UserError, match=rf"t\.csv: {message}"):
        find_groups(samples("a"), write(tmp_path / "t.csv", text))


def test_a_missing_table_and_one_that_is_no_text_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: found no such file"):
        find_groups(samples("a"), Groups(pattern=None, table=str(tmp_path / "none.csv"), sequences="auto"))
    (tmp_path / "t.csv").write_bytes(b"id,group\n\xff\xfe,p\n")
    with pytest.raises(UserError, match=r"t\.csv: found no CSV in UTF-8"):
        find_groups(samples("a"), Groups(pattern=None, table=str(tmp_path / "t.csv"), sequences="auto"))
