"""CSV tables that a spreadsheet opens."""

import csv

import pytest

from pipelines.core.tables import read_rows, write_rows

CELLS = (
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "'=1+1",
    "''x",
    "'x",
    "a=b",
    "-01.a",
    "",
    'ü, "q"',
)


@pytest.mark.parametrize("as_mapping", [False, True])
def test_a_spreadsheet_runs_no_cell_and_every_text_comes_back(tmp_path, as_mapping):
    rows = [{"id": cell, "note": cell} if as_mapping else (cell, cell) for cell in CELLS]
    write_rows(tmp_path / "a.csv", ("id", "note"), rows)
    with (tmp_path / "a.csv").open(newline="") as file:
        written = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in written if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert [(row["id"], row["note"]) for row in read_rows(tmp_path / "a.csv")] == [(cell, cell) for cell in CELLS]


def test_numbers_stay_numbers(tmp_path):
    write_rows(tmp_path / "a.csv", ("a", "b", "c", "d"), [(-1, -0.5, "-0.250000", None)])
    assert (tmp_path / "a.csv").read_text() == "a,b,c,d\n-1,-0.5,-0.250000,\n"


def test_what_is_no_table_is_refused(tmp_path):
    for text in ("a,b\n1,2,3\n", 'a\n"'):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(ValueError, match="not a CSV table"):
            read_rows(tmp_path / "a.csv")
