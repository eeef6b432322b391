"""Which samples belong together: a patient, a slide, a plate, a volume, the frames of a video."""

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.core.sections.prepare import Groups, NearDuplicates, Prepare
from pipelines.core.tables import plain_cell
from pipelines.dataset.layouts import Sample
from pipelines.dataset.near_duplicates import Looks, find_duplicates
from pipelines.dataset.splits import NEAR, SPLITS, place
from pipelines.storage.naming.templates import SPLIT_OF, composed
from unetpp.errors import UserError

# How often adjacent frames of a sequence are more alike than distant ones, and not by chance (in deviations).
ALIKE, DEVIATIONS = 0.75, 3.0
APART = 3  # ranks from which two frames count as distant
FEWEST = 2 * APART + 1  # frames of a sequence that can be judged
ENOUGH = 10  # sequences from which each is a group
BLOCKS = 15  # at least, of divided sequences; three splits of ordinary shares then all get some
LONGEST = 64  # frames of a block


def find_groups(samples: Sequence[Sample], params: Groups) -> list[str]:
    """The group of each sample: by the pattern or table in params if set, else the layout's own, else its id.

    Raises:
        UserError: the pattern does not match an id, the table does not exist, or ids are not in it.
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


def same_volume(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Pairs (first, other) of slices of a volume, which stay together for any prepare.groups."""
    first: dict[str, int] = {}
    volumes = [(first.setdefault(sample.group, index), index) for index, sample in enumerate(samples) if sample.group]
    return [(one, other) for one, other in volumes if one != other]


def look_up(samples: Sequence[Sample], path: Path, column: str, key: str) -> list[str]:
    """Looked up by the sample's id in a CSV file; a slice that is not listed itself by the id of its volume.

    Args:
        column: the column to look up.
        key: the key of params.yaml that names the file.
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
        print(f"prepare: {path}: {len(unknown)} of {len(table)} ids match no image of this dataset, such as {first}")
    return [one for one in found if one is not None]


def read_table(path: Path, column: str, key: str) -> dict[str, str]:
    """The value of each id in a CSV file with the columns id and `column`, in any order and among others.

    Raises:
        UserError: no such file, missing columns, an empty cell, or two values for an id.
    """
    expected = f"expected a CSV file with the columns id and {column}"
    if not path.is_file():
        raise UserError(f"{path}: found {'a folder' if path.is_dir() else 'no such file'}; {expected}: correct {key}")
    found: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin a CSV with a BOM
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
                        f"{path}: line {rows.line_num}: found {id!r} in {column} {value!r} and earlier in "
                        f"{found[id]!r}; expected one {column} per id: remove one of the lines"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: found no CSV in UTF-8 ({error}); {expected}: save it as one") from None
    return found


class Frame(NamedTuple):
    """A sample by its name: `<folders><prefix><number><rest>`, without the words for splits."""

    sequence: str
    number: int


def read_frame(id: str) -> Frame | None:
    """The position of an id in a sequence of numbered names; None if it has no number."""
    name = "/".join(part for part in id.split("/") if part.lower() not in SPLIT_OF)
    found = re.fullmatch(r"(.*?)(\d{1,18})([^\d/]*)", name, re.DOTALL)
    return Frame(f"{found[1]}*{found[3]}", int(found[2])) if found else None


def find_frames(ids: Mapping[int, str], samples: Sequence[Sample], looks: Looks, params: Groups) -> dict[int, Frame]:
    """Frames of sequences, if neither params nor the layout group them."""
    if params.sequences == "none" or params.pattern is not None or params.table is not None:
        return {}
    return find_sequences({index: id for index, id in ids.items() if not samples[index].group}, looks.small)


def find_sequences(ids: Mapping[int, str], small: np.ndarray) -> dict[int, Frame]:
    """Frames by index, of sequences in which adjacent frames are more alike than distant ones: of videos and stacks.

    Numbers are not enough: names of photographs are numbered too.

    Args:
        small: (n, S) of `near_duplicates.Looks`, by index.
    """
    sequences: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, id in ids.items():
        if frame := read_frame(id):
            sequences[frame.sequence].append((frame.number, index))
    judged = {name: _wins(sorted(rows), small) for name, rows in sequences.items() if len(rows) >= FEWEST}
    short = [name for name, wins in judged.items() if len(wins) < DEVIATIONS**2]  # which prove nothing individually
    found = {name for name, wins in judged.items() if name not in short and _is_alike(wins)}
    if short and _is_alike(np.concatenate([judged[name] for name in short])):
        found |= set(short)
    return {index: Frame(name, number) for name in sorted(found) for number, index in sequences[name]}


def _wins(rows: list[tuple[int, int]], small: np.ndarray) -> np.ndarray:
    """For each frame but the last: the share of distant frames that are less similar to it than the next one."""
    order = np.array([index for _, index in rows])
    n = len(order)
    others = sorted({max(APART, round(n * part)) for part in (0.25, 0.4, 0.5, 0.6, 0.75)} - {n})
    shares = []
    for start in range(0, n - 1, 256):
        ranks = np.arange(start, min(start + 256, n - 1))
        here, following = _unit(small[order[ranks]]), _unit(small[order[ranks + 1]])
        near = np.einsum("ij,ij->i", here, following)
        beaten, counted = np.zeros(len(ranks)), np.zeros(len(ranks))
        for distance in others:
            far = (ranks + distance) % n
            valid = (np.abs(far - ranks) >= APART).astype(float)
            likeness = np.einsum("ij,ij->i", here, _unit(small[order[far]]))
            beaten += valid * ((near > likeness) + 0.5 * (near == likeness))
            counted += valid
        shares.append(beaten[counted > 0] / counted[counted > 0])
    return np.concatenate(shares)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _is_alike(wins: np.ndarray) -> bool:
    share = float(wins.mean()) if len(wins) else 0.0
    return share >= ALIKE and (share - 0.5) * 2 * len(wins) ** 0.5 >= DEVIATIONS


def group_frames(groups: list[str], frames: Mapping[int, Frame], params: Prepare) -> list[str]:
    """The groups with those of frames: each sequence is a group if there are many, and no split becomes empty."""
    if not frames:
        return groups
    names = {frame.sequence for frame in frames.values()}
    whole = len(names) >= ENOUGH and {place([[name]], params)[0].split for name in names} == set(SPLITS)
    named = name_groups(frames, whole)
    how = "each is a group" if whole else f"they are cut into {len(set(named.values()))} blocks of adjacent frames"
    print(
        f"prepare: {len(frames)} images are frames of {len(names)} sequence{'s' * (len(names) > 1)}, such as "
        f"{min(names)}, by their numbers and looks: {how} (prepare.groups.sequences=none turns this off)"
    )
    return [named.get(index, group) for index, group in enumerate(groups)]


def name_groups(frames: Mapping[int, Frame], whole: bool) -> dict[int, str]:
    """The group of each frame: its sequence, or a block of it with fixed numbers as bounds.

    A block's length is a power of two, so that it changes only when the dataset doubles.
    """
    if whole:
        return {index: frame.sequence for index, frame in frames.items()}
    length = 1
    while length < LONGEST and len(frames) // (2 * length) >= BLOCKS:
        length *= 2
    numbers: dict[str, list[int]] = defaultdict(list)
    for frame in frames.values():
        numbers[frame.sequence].append(frame.number)
    steps = {
        name: max(1, int(np.median(np.diff(np.unique(rows))))) for name, rows in numbers.items() if len({*rows}) > 1
    }
    return {
        index: f"{frame.sequence}, block {frame.number // (length * steps.get(frame.sequence, 1))}"
        for index, frame in frames.items()
    }


def find_neighbours(frames: Mapping[int, Frame], splits: Mapping[int, str]) -> dict[str, dict[str, int]]:
    """For val and test, if they have frames: how many, and how many are within NEAR of a train frame."""
    train: dict[str, list[int]] = defaultdict(list)
    for index, frame in frames.items():
        if splits[index] == "train":
            train[frame.sequence].append(frame.number)
    ordered = {name: np.sort(rows) for name, rows in train.items()}
    found = {}
    for split in ("val", "test"):
        here = [frame for index, frame in frames.items() if splits[index] == split]
        near = 0
        for frame in here:
            rows = ordered.get(frame.sequence)
            if rows is not None:
                at = int(np.searchsorted(rows, frame.number))
                near += any(abs(int(one) - frame.number) <= NEAR for one in rows[max(0, at - 1) : at + 1])
        if here:
            found[split] = {"frames": len(here), "near": near}
    return found


def find_pairs(
    samples: Sequence[Sample], looks: Looks, frames: Mapping[int, Frame], near: NearDuplicates | None
) -> list[tuple[int, int, int, float]]:
    """The near-duplicates, without slices of a volume and frames of a sequence: their neighbours are always alike."""
    found = find_duplicates(looks, near.distance, near.correlation) if near else []
    same = {index: frame.sequence for index, frame in frames.items()}
    same |= {index: sample.group for index, sample in enumerate(samples) if sample.group}
    return [pair for pair in found if pair[0] not in same or same[pair[0]] != same.get(pair[1])]
