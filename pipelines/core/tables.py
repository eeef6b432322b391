"""CSV tables whose cells no spreadsheet runs as formulas: names of files and folders come from strangers.

A text cell that a spreadsheet would take for a formula (it begins with = + - @ tab or CR) is written behind an
apostrophe, which `read_rows` takes off again. Numbers stay numbers.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.core.files import replacing

CRLF = "\r\n"
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def safe_cell(value: Any) -> Any:
    """The value as it is written."""
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def plain_cell(text: str) -> str:
    """The text of a cell that `safe_cell` made."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table by column.

    Raises:
        OSError, ValueError: no such file, or no table in UTF-8.
    """
    return list(each_row(path))


def each_row(path: Path) -> Iterator[dict[str, str]]:
    """`read_rows`, one at a time."""
    with path.open(newline="", encoding="utf-8") as file:
        try:
            for row in csv.DictReader(file, strict=True):
                yield {key: plain_cell(text or "") for key, text in row.items()}
        except (csv.Error, AttributeError) as error:  # a row of more cells than the header has
            raise ValueError(f"not a CSV table: {error}") from None


def write_rows(path: Path, header: Iterable[str], rows: Iterable[Iterable | Mapping[str, Any]]) -> None:
    """Write a table, whole or not at all, with the same bytes on every machine.

    Args:
        rows: cells in the order of the header, or by its names; a name that a row lacks is an empty cell.
    """
    header = list(header)
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        # Names of files need not be UTF-8. A CR in a cell is quoted where the end of a line has one.
        lines: Any = SimpleNamespace(write=lambda line: file.write(f"{line.removesuffix(CRLF)}\n"))
        writer = csv.writer(lines, lineterminator=CRLF)
        writer.writerow(header)
        for row in rows:
            cells = (row.get(name) for name in header) if isinstance(row, Mapping) else row
            writer.writerow([safe_cell(cell) for cell in cells])
