"""Which samples belong together before anything is known of their pixels: a patient, a slide, a plate, a volume."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.core.data_sections import Groups
from pipelines.core.tables import plain_cell
from pipelines.dataset.layouts import Sample
from pipelines.storage.templates import composed
from unetpp.errors import UserError


def find_groups(samples: Sequence[Sample], params: Groups) -> list[str]:
    """The group of each sample: by pattern or table where params have one, else the layout's own, else its id.

    Raises:
        UserError: an id that the pattern does not match, no such table, or ids that are not in it.
    """
    if params.pattern is not None:
        return [_match(sample.id, params.pattern) for sample in samples]
    if params.table is not None:
        return _look_up(samples, Path(params.table))
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


def _look_up(samples: Sequence[Sample], path: Path) -> list[str]:
    """By the sample's id; a slice that is not listed itself goes by the id of its volume."""
    table = read_table(path)
    groups = [table.get(sample.id) or table.get(sample.group or "") for sample in samples]
    missing = [sample.id for sample, group in zip(samples, groups, strict=True) if group is None]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{path}: found no row for {len(missing)} of {len(samples)} ids: {', '.join(missing[:5])}{more}; expected "
            "a row id,group for every image, the id as in split.csv (the file's name without its suffix, with its "
            "subfolders): add them"
        )
    unknown = table.keys() - {sample.id for sample in samples} - {sample.group for sample in samples}
    if unknown:
        first = ", ".join(sorted(unknown)[:5])
        print(f"prepare: {path}: {len(unknown)} of {len(table)} ids are no image of this set, such as {first}")
    return [group for group in groups if group is not None]


def read_table(path: Path) -> dict[str, str]:
    """Group by id of a CSV file with the columns id and group, in any order and among others.

    Raises:
        UserError: no such file, no such columns, an empty cell, or an id in two groups.
    """
    expected = "expected a CSV file with the columns id and group"
    if not path.is_file():
        raise UserError(
            f"{path}: found {'a folder' if path.is_dir() else 'no such file'}; {expected}: correct prepare.groups.table"
        )
    groups: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet begins its CSV with a mark
            rows = csv.DictReader(file)
            if not {"id", "group"} <= set(rows.fieldnames or ()):
                raise UserError(f"{path}: found the columns {', '.join(rows.fieldnames or ()) or 'none'}; {expected}")
            for row in rows:
                id, group = composed(plain_cell(row["id"] or "")), plain_cell(row["group"] or "")
                if not id or not group:
                    raise UserError(
                        f"{path}: line {rows.line_num}: found an empty id or group; {expected}, both filled"
                    )
                if groups.setdefault(id, group) != group:
                    raise UserError(
                        f"{path}: line {rows.line_num}: found {id!r} in group {group!r} and before in {groups[id]!r}; "
                        "expected one group an id: remove one of the lines"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: found no CSV in UTF-8 ({error}); {expected}: save it as one") from None
    return groups
