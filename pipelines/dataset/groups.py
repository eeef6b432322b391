"""Which samples belong together before anything is known of their pixels: a patient, a slide, a plate, a volume."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.core.data_sections import Groups
from pipelines.core.tables import plain_cell
from pipelines.dataset.layouts import Sample
from pipelines.storage.layout_names import composed
from unetpp.errors import UserError


def find_groups(samples: Sequence[Sample], params: Groups) -> list[str]:
    """The group of each sample: by pattern or table where params have one, else the layout's own, else its id.

    Raises:
        UserError: an id that the pattern does not match, no such table, or ids that are not in it.
    """
    if params.pattern is not None:
        return [_match(sample.id, params.pattern) for sample in samples]
    if params.table is not None:
        return look_up(samples, Path(params.table), "group", "prepare.groups.table")
    return [sample.group or sample.id for sample in samples]


def _match(id: str, pattern: str) -> str:
    found = re.search(pattern, id)
    if not found or not found[1]:
        raise UserError(
            f"prepare.groups.pattern: found the id {id!r}, in which {pattern!r} "
            + ("matches nothing" if not found else "has an empty group")
            + "; expected a group for every id: correct the pattern or the name of the file"
        )
    return found[1]


def look_up(samples: Sequence[Sample], path: Path, column: str, key: str) -> list[str]:
    """By the sample's id in a CSV file; a slice that is not listed itself goes by the id of its volume.

    Args:
        column: of what is looked up.
        key: of params.yaml that names the file.
    """
    table = read_table(path, column, key)
    found = [table.get(sample.id) or table.get(sample.group or "") for sample in samples]
    missing = [sample.id for sample, one in zip(samples, found, strict=True) if one is None]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{path}: found no row for {len(missing)} of {len(samples)} ids: {', '.join(missing[:5])}{more}; expected "
            f"a row id,{column} for every image, the id as in split.csv (the file's name without its suffix, with its "
            "subfolders): add them"
        )
    unknown = table.keys() - {sample.id for sample in samples} - {sample.group for sample in samples}
    if unknown:
        first = ", ".join(sorted(unknown)[:5])
        print(f"prepare: {path}: {len(unknown)} of {len(table)} ids are no image of this set, such as {first}")
    return [one for one in found if one is not None]


def read_table(path: Path, column: str, key: str) -> dict[str, str]:
    """What a CSV file with the columns id and `column`, in any order and among others, says of each id.

    Raises:
        UserError: no such file, no such columns, an empty cell, or two values of an id.
    """
    expected = f"expected a CSV file with the columns id and {column}"
    if not path.is_file():
        raise UserError(f"{path}: found {'a folder' if path.is_dir() else 'no such file'}; {expected}: correct {key}")
    found: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet begins its CSV with a mark
            rows = csv.DictReader(file)
            if not {"id", column} <= set(rows.fieldnames or ()):
                raise UserError(f"{path}: found the columns {', '.join(rows.fieldnames or ()) or 'none'}; {expected}")
            for row in rows:
                id, value = composed(plain_cell(row["id"] or "")), plain_cell(row[column] or "")
                if not id or not value:
                    raise UserError(
                        f"{path}: line {rows.line_num}: found an empty id or {column}; {expected}, both filled"
                    )
                if found.setdefault(id, value) != value:
                    raise UserError(
                        f"{path}: line {rows.line_num}: found {id!r} in {column} {value!r} and before in "
                        f"{found[id]!r}; expected one {column} an id: remove one of the lines"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: found no CSV in UTF-8 ({error}); {expected}: save it as one") from None
    return found
