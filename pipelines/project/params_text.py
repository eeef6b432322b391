"""params.yaml as text: values and keys are changed in place; everything else, comments included, is kept.

A value chosen by a plan has its reason above it, in lines that begin with `# plan` and the value itself, which shows
later whether the user has changed it.
"""

import re
import textwrap
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

import yaml

from unetpp.errors import UserError

PLAN = "# plan "
WIDTH = 96
FOLDED = 78  # longest line in which DVC keeps a list when it changes another value
CONTINUED = " " * 9  # how a line begins that continues the comment of a value
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former is libyaml's, ten times as fast


class Entry(NamedTuple):
    """Where a key is: lines count from 0, `last` is the last line of its value; `block` if that is a block of keys."""

    first: int
    last: int
    indent: int
    column: int  # after the value if that ends on its line, else after the colon
    value: Any
    block: bool


@lru_cache(maxsize=8)
def entries(text: str) -> dict[str, Entry]:
    """Every key by its dotted path, in the order of the file.

    Raises:
        UserError: the text is no YAML of names and values.
    """
    try:
        root = yaml.compose(text, LOADER)
    except yaml.YAMLError as error:
        raise UserError(f"params.yaml: not YAML ({' '.join(str(error).split())}); correct it by hand") from None
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise UserError("params.yaml: expected sections, such as train, with keys below them")
    found: dict[str, Entry] = {}
    _gather(root, yaml.load(text, LOADER), "", found)
    return found


def _gather(node: yaml.MappingNode, values: Any, prefix: str, found: dict[str, Entry]) -> None:
    by_name = {str(name): one for name, one in values.items()}
    for key, value in node.value:
        name, inner = f"{prefix}{key.value}", by_name.get(key.value)
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        line, column = _end(value)
        on_line = not (isinstance(value, yaml.CollectionNode) and not value.flow_style) and value.end_mark.line == line
        if inner is None and value.start_mark.index == value.end_mark.index:
            line, column = key.end_mark.line, key.end_mark.column + 1
        elif not on_line or value.start_mark.line != key.start_mark.line:
            column = key.end_mark.column + 1
        found[name] = Entry(key.start_mark.line, line, key.start_mark.column, column, inner, is_block)
        if isinstance(value, yaml.MappingNode) and is_block:
            _gather(value, inner, f"{name}.", found)


def _end(node: yaml.Node) -> tuple[int, int]:
    """The line and column at which a value ends; of a block PyYAML itself says where the next thing begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        leaves = [one for pair in node.value for one in (pair if isinstance(pair, tuple) else (pair,))]
        return max(map(_end, leaves))
    mark = node.end_mark
    if mark.column == 0 and mark.line > node.start_mark.line:  # a text in several lines
        return mark.line - 1, 0
    return mark.line, mark.column


def written(value: Any) -> str:
    """A value in one line of YAML; nothing for null, as in params.yaml."""
    if value is None:
        return ""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def set_value(text: str, key: str, value: Any, reason: str) -> str:
    """The text with a new value for an existing key, and the reason above it."""
    lines, entry = text.split("\n"), entries(text)[key]
    spaces = " " * entry.indent
    # Behind a block there is no comment but the one behind its key.
    behind = lines[entry.first if entry.column <= len(lines[entry.first]) and _is_there(entry, lines) else entry.last]
    comment = behind[entry.column :].strip()
    line, below = f"{spaces}{key.rpartition('.')[2]}: {written(value)}".rstrip(), []
    if len(line) > FOLDED and isinstance(value, list | tuple | dict):  # as DVC writes it
        line = line[: entry.indent + len(key.rpartition(".")[2]) + 1]
        pairs = value.items() if isinstance(value, dict) else ()
        below = [f"{spaces}  {written(name)}: {written(one)}" for name, one in pairs]
        below = below or [f"{spaces}- {written(one)}" for one in value]
    if comment.startswith("#"):
        line = f"{line:<{max(behind.index(comment, entry.column) - 2, 0)}}  {comment}"
    start = entry.first - len(_reason_lines(lines, entry))
    lines[start : entry.last + 1] = [*_reason(spaces, value, reason), line, *below]
    return _checked("\n".join(lines), key, value)


def _is_there(entry: Entry, lines: list[str]) -> bool:
    """Whether the comment of a key stands on its first line: its value ends there, or begins below."""
    return entry.first == entry.last or lines[entry.first][: entry.column].rstrip().endswith(":")


def _reason(spaces: str, value: Any, reason: str) -> list[str]:
    if not reason:
        return []
    said = f"{written(value) or 'null'}: {reason}"
    return textwrap.wrap(
        said, WIDTH, initial_indent=spaces + PLAN, subsequent_indent=f"{spaces}#      ", break_on_hyphens=False
    )


def _reason_lines(lines: list[str], entry: Entry) -> list[str]:
    """The lines above a key with a plan's reason."""
    start = entry.first
    while start and lines[start - 1].strip().startswith("#      "):
        start -= 1
    if start and lines[start - 1].strip().startswith(PLAN):
        return lines[start - 1 : entry.first]
    return []


def is_planned(text: str, key: str) -> bool:
    """Whether a value is still as a plan wrote it."""
    lines, entry = text.split("\n"), entries(text)[key]
    above = _reason_lines(lines, entry)
    said = " ".join(line.strip().removeprefix(PLAN).removeprefix("#").strip() for line in above)
    return bool(above) and said.startswith(f"{' '.join((written(entry.value) or 'null').split())}: ")


def add_missing(text: str, template: str) -> tuple[str, list[str]]:
    """The text with its missing keys added from the template, each in its place; and their dotted paths."""
    added, known = [], entries(template)
    for key, entry in known.items():
        there = entries(text)
        parent = key.rpartition(".")[0]
        if key in there or (parent and not there[parent].block if parent in there else parent):
            continue  # or its section was added with it, or is null
        lines, source = text.split("\n"), template.split("\n")
        siblings = [one for one in known if one.rpartition(".")[0] == parent]
        before = [one for one in siblings[: siblings.index(key)] if one in there]
        end = entry.last + 1
        while source[end : end + 1] and source[end].startswith(CONTINUED):
            end += 1
        block = source[entry.first : end]
        if before:
            at = there[before[-1]].last + 1
            at += sum(1 for _ in takewhile(lambda line: line.startswith(CONTINUED), lines[at:]))
            block = block if parent else ["", *block]
        elif parent:
            at = there[parent].first + 1
        else:
            at, block = min(one.first for one in there.values()), [*block, ""]
        lines[at:at] = block
        text = "\n".join(lines)
        added += [one for one in known if one == key or one.startswith(f"{key}.")]
        _checked(text, key, entry.value)
    return text, added


def unknown(text: str, template: str) -> list[str]:
    """Keys that do not exist in the template's sections."""
    known = entries(template)
    return [
        key
        for key in entries(text)
        if key not in known and (not key.rpartition(".")[0] or getattr(known.get(key.rpartition(".")[0]), "block", 0))
    ]


def _checked(text: str, key: str, value: Any) -> str:
    """The text, if the key has the value: a file may be laid out in ways that editing lines cannot handle."""
    found = entries(text).get(key)
    same = found is not None and found.value == yaml.safe_load(written(value) or "null")
    if not same:
        raise UserError(
            f"params.yaml: {key} cannot be set to {written(value)} because of how the file is laid out: set it by hand"
        )
    return text


def sign(text: str, first: str) -> str:
    """The text with a new first comment in place of the template's."""
    return first + text[re.search(r"^\w", text, re.MULTILINE).start() :]  # pyright: ignore[reportOptionalMemberAccess]
