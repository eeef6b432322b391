"""Which split a sample goes to: a function of only the data, so that adding files moves no old one.

The rule. `position(salt, group)` is a hash in [0, 1). Below shares.train is train, then comes val, and the upper
end is test. Groups with near-duplicates of each other are joined, and a joined group is where the highest of its
members is. So a new file moves nothing unless it is a near-duplicate of old ones, and then it moves them only toward
test: images that were once tested on are never trained on.

No rule does better. Let A be in train and B in test, and add a file that is a near-duplicate of both: one of them
has to move, and moving B out of test would train on what earlier models were tested on.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.core.sections.prepare import Prepare, Shares
from pipelines.core.tables import read_rows
from unetpp.data.arrow_split import Split
from unetpp.errors import UserError

SPLITS = ("train", "val", "test")
BLOCK = re.compile(r"(.*), block (\d+)", re.DOTALL)
GOLDEN = (5**0.5 - 1) / 2
NEAR = 30  # numbers between two frames: a second of video


class Place(NamedTuple):
    """Where a sample goes. `group` is the highest member of its joined group; test has no fold."""

    group: str
    split: str
    fold: int | None


class Joined:
    """Disjoint sets of the numbers 0 ... n - 1 (union-find): `unite` two, `find` the name of a set."""

    def __init__(self, n: int):
        self.parents = list(range(n))

    def find(self, one: int) -> int:
        """The smallest number of the set."""
        root = one
        while self.parents[root] != root:
            root = self.parents[root]
        while self.parents[one] != root:  # path compression
            self.parents[one], one = root, self.parents[one]
        return root

    def unite(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self.parents[high] = low


def position(salt: str, group: str) -> float:
    """A uniform number in [0, 1): a function of only the two words.

    The blocks of a sequence are spaced by the golden ratio, so that any fifteen come near every position.
    """
    if block := BLOCK.fullmatch(group):
        return (position(salt, block[1]) + int(block[2]) * GOLDEN) % 1
    digest = hashlib.sha256(f"{salt}\0{group}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def find_split(u: float, shares: Shares, folds: int | None = None, fold: int = 0) -> tuple[str, int | None]:
    """The split and the fold of a position.

    Test is the same with folds and without. With folds, the rest is divided into so many equal parts, and `fold`
    is val.
    """
    rest = shares.train + shares.val
    if u >= rest:
        return "test", None
    if folds is None:
        return ("train" if u < shares.train else "val"), None
    found = min(int(u / rest * folds), folds - 1)
    return ("val" if found == fold else "train"), found


def join(groups: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[list[str]]:
    """For each sample, the distinct groups that its own is joined with, including itself, sorted.

    Args:
        groups: the group of each sample.
        pairs: indices of samples that must share a split.
    """
    names = sorted(set(groups))
    numbers = {name: number for number, name in enumerate(names)}
    joined = Joined(len(names))
    for one, other in pairs:
        joined.unite(numbers[groups[one]], numbers[groups[other]])
    members: dict[int, list[str]] = defaultdict(list)
    for number, name in enumerate(names):
        members[joined.find(number)].append(name)
    return [members[joined.find(numbers[group])] for group in groups]


def place(
    members: Sequence[list[str]], params: Prepare, salt: str | None = None, given: Sequence[str | None] = ()
) -> list[Place]:
    """The place of each sample by the groups that its own is joined with (see `join`).

    Args:
        given: the dataset's own split of each sample; empty, or all None, if it has none. Then test is that,
            and so are train and val if there are both and no folds; else they are drawn from what is not test.
    """
    salt = params.salt if salt is None else salt
    found: dict[int, tuple[float, str]] = {}  # by the identity of the list, which the samples of a joined group share
    for names in members:
        if id(names) not in found:
            found[id(names)] = max((position(salt, name), name) for name in names)
    if not any(given):
        return [
            Place(group, *find_split(u, params.shares, params.folds, params.fold))
            for u, group in (found[id(names)] for names in members)
        ]
    if "val" in given and params.folds is None:
        return [Place(found[id(names)][1], str(split), None) for names, split in zip(members, given, strict=True)]
    rest = params.shares.train + params.shares.val  # positions below are not test
    own = [None if split == "test" else found[id(names)] for names, split in zip(members, given, strict=True)]
    places = []
    for names, one in zip(members, own, strict=True):
        where = ("test", None) if one is None else find_split(one[0] * rest, params.shares, params.folds, params.fold)
        places.append(Place(found[id(names)][1], *where))
    if any(place.split == "val" for place in places) or params.folds:
        return places
    highest = max(one for one in own if one is not None)  # a small set gets the group that comes next
    return [place._replace(split="val") if one == highest else place for place, one in zip(places, own, strict=True)]


def find_apart(prepared: Path, groups: dict[str, str], pairs: Iterable[tuple[str, str, str]]) -> list[str]:
    """Lines about groups and pairs that are in two splits, according to the written files.

    Args:
        prepared: folder with the Arrow files, split.csv and duplicates.csv.
        groups: the group of each id, by the params or the layout.
        pairs: two ids that must not be in different splits, and why; those of duplicates.csv are added.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        for id in Split(prepared / f"{split}.arrow").ids:
            splits[id].add(split)
    for row in read_rows(prepared / "split.csv"):
        splits[row["id"]].add(row["split"])
    members: dict[str, list[str]] = defaultdict(list)
    for id, group in groups.items():
        members[group].append(id)
    lines = []
    for group, ids in sorted(members.items()):
        standing = set().union(*(splits[id] for id in ids))
        if len(standing) > 1:
            # One of each split is enough; a group may be large.
            shown = [
                next(f"{id} in {split}" for id in ids if split in splits[id]) for split in SPLITS if split in standing
            ]
            lines.append(f"the group {group!r} of {len(ids)} images is in {_words(standing)}: {', '.join(shown)}")
    alike = {(one, other): why for one, other, why in pairs}
    for row in read_rows(prepared / "duplicates.csv"):
        why = f"near-duplicates, distance {row['distance']}, correlation {row['correlation']}"
        alike.setdefault((row["id"], row["other"]), why)
    return lines + [
        f"{one} in {_words(splits[one])} and {other} in {_words(splits[other])} are {why}"
        for (one, other), why in sorted(alike.items())
        if len(splits[one] | splits[other]) > 1
    ]


def check_apart(prepared: Path, groups: dict[str, str], pairs: Iterable[tuple[str, str, str]]) -> None:
    """Refuse a split of ours with what `find_apart` finds. For the dataset's own split, `tell_leaks` reports it.

    Raises:
        UserError: lists the groups and the pairs that are in two splits.
    """
    lines = find_apart(prepared, groups, pairs)
    if not lines:
        return
    more = [f"and {len(lines) - 20} more"] if len(lines) > 20 else []
    raise UserError(
        f"{prepared}: found {len(lines)} groups or pairs of images that are in two splits; expected each in one, "
        "as otherwise the test set is trained on: remove one of the two files, give both one group "
        "(prepare.groups), or set prepare.near_duplicates\n  " + "\n  ".join([*lines[:20], *more])
    )


def tell_leaks(lines: list[str], neighbours: dict[str, dict[str, int]]) -> list[str]:
    """Sentences about the dataset's own split: what of its test is not new after training on its train.

    Args:
        lines: of `find_apart`.
        neighbours: of `groups.find_neighbours`.
    """
    leaks = []
    if lines:
        kinds = (
            "groups or pairs of images that are alike" if len(lines) > 1 else "group or pair of images that are alike"
        )
        leaks.append(f"The dataset's own split divides {len(lines)} {kinds}, such as: {lines[0]}.")
    leaks += [
        f"{found['near']} of {found['frames']} {split} frames lie within {NEAR} frames of a train frame of the same "
        "sequence."
        for split, found in neighbours.items()
        if found["near"]
    ]
    return leaks


def _words(splits: set[str]) -> str:
    return " and ".join(split for split in SPLITS if split in splits)
