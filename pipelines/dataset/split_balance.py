"""How alike the splits are: how kinds of images are distributed over them, and the means of each against the whole.

The hash does not depend on the kind, so every kind gets the shares in expectation, and a small one may miss a split by
chance. Moving single images would make a split depend on the other images; another salt does not, and a salt with a
better balance is proposed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines import detail
from pipelines.core.sections.prepare import Prepare
from pipelines.dataset.sample_stats import Samples, rounded
from pipelines.dataset.splits import SPLITS, Place, place
from unetpp.errors import UserError

# A group of near-duplicates with so many images, and such a share of all, is reported.
LARGE_GROUP, LARGE_SHARE = 10, 0.1
# Below this number of images a kind may well miss a split by chance, which is not reported.
KIND_MATTERS = 5
# The number of other salts to try for a better balance, and of groups in all of them: some seconds.
SALTS_TRIED = 300
GROUPS_TRIED = 1_000_000
MOST_KINDS = 8  # of which each share is compared with the whole


@dataclass(frozen=True)
class Balance:
    """How many samples of each kind there are in each part: train, val and test, or test and each fold."""

    shares: dict[str, float]  # by part
    counts: dict[str, dict[str, int]]  # by kind and part

    @classmethod
    def of(cls, kinds: Sequence[str], places: Sequence[Place], params: Prepare) -> "Balance":
        shares = params.shares
        if params.folds is None:
            wanted = {"train": shares.train, "val": shares.val, "test": shares.test}
            parts = [one.split for one in places]
        else:
            folds = {f"fold {n}": (shares.train + shares.val) / params.folds for n in range(params.folds)}
            wanted = folds | {"test": shares.test}
            parts = ["test" if one.fold is None else f"fold {one.fold}" for one in places]
        found = Counter(zip(kinds, parts, strict=True))
        return cls(wanted, {kind: {part: found[kind, part] for part in wanted} for kind in sorted(set(kinds))})

    def faults(self) -> list[str]:
        """A line for each kind that misses a part or is far off its share: by a factor of two, and two images."""
        lines = []
        for kind, counts in self.counts.items():
            total = sum(counts.values())
            expected = {part: share * total for part, share in self.shares.items()}
            off = [
                not counts[part] or (abs(counts[part] - wanted) >= 2 and not wanted / 2 <= counts[part] <= wanted * 2)
                for part, wanted in expected.items()
            ]
            if total >= KIND_MATTERS and any(off):
                numbers = ", ".join(f"{counts[part]} in {part} ({wanted:.1f})" for part, wanted in expected.items())
                lines.append(f"{total} {kind} images, with those expected by prepare.shares in parentheses: {numbers}")
        return lines

    def score(self) -> tuple[int, float]:
        """Smaller is better: how many parts some kind misses, then chi-squared against the shares."""
        missing, chi = 0, 0.0
        for counts in self.counts.values():
            total = sum(counts.values())
            for part, share in self.shares.items():
                missing += not counts[part]
                chi += (counts[part] - share * total) ** 2 / (share * total)
        return missing, chi


def propose_salt(kinds: Sequence[str], members: Sequence[list[str]], params: Prepare) -> tuple[str, Balance] | None:
    """The salt with the best balance over the kinds, out of some hundred, or None if none is better."""
    tries = min(SALTS_TRIED, GROUPS_TRIED // len({name for names in members for name in names}))
    best, proposed = Balance.of(kinds, place(members, params), params), None
    for number in range(1, tries + 1):
        salt = f"{params.salt}-{number}"
        balance = Balance.of(kinds, place(members, params, salt), params)
        if balance.score() < best.score():
            best, proposed = balance, salt
    return (proposed, best) if proposed else None


def tell_large_groups(members: list[list[str]]) -> None:
    """Warn about a joined group with much of the dataset: it is seldom one picture, and moves as a whole."""
    joined = Counter(tuple(names) for names in members if len(names) > 1)
    if not joined:
        return
    largest, number = joined.most_common(1)[0]
    if number >= LARGE_GROUP and number > LARGE_SHARE * len(members):
        print(
            f"warning: near-duplicates join {number} of {len(members)} images in one group, {largest[0]} among them: "
            "look at duplicates.csv; raise prepare.near_duplicates.correlation if they are not duplicates, or set "
            "prepare.groups"
        )


def check_balance(
    kinds: list[str], members: list[list[str]], places: list[Place], params: Prepare, given: bool = False
) -> None:
    """Refuse an empty split, and warn about a badly divided kind, with a better salt.

    Args:
        given: the dataset's own split is used, in which no salt changes the test split.
    """
    faults = [] if given else Balance.of(kinds, places, params).faults()
    counts = Counter(place.split for place in places)
    if len(counts) == len(SPLITS) and not faults:
        return
    proposed = propose_salt(kinds, members, params)
    advice = f"prepare.salt={proposed[0]}" if proposed else "no other prepare.salt of those tried does better"
    if len(counts) < len(SPLITS):
        found = ", ".join(f"{counts[split]} for {split}" for split in SPLITS)
        raise UserError(
            f"prepare.shares: found {found}; expected at least one image for each: add images, set other shares or "
            f"another prepare.salt than {params.salt!r} ({advice})"
        )
    print("\n".join(f"warning: {fault}" for fault in faults))
    if proposed:
        better = "; ".join(
            f"{kind} " + ", ".join(f"{number} in {part}" for part, number in found.items())
            for kind, found in proposed[1].counts.items()
        )
        print(f"warning: {advice} divides the kinds better; it reshuffles all splits, so set it before you train")
        detail(f"it would give {better}")
    else:
        print(f"warning: {advice}")


def measure_balance(samples: Samples, within: dict[str, np.ndarray]) -> list[dict]:
    """The measures of each split against the whole, with the difference in standard errors of random sampling.

    A split is regarded as a sample without replacement: the standard error of a mean of n out of N is
    s / sqrt(n) * sqrt((N - n) / (N - 1)), with s the standard deviation of the whole.
    """
    some = samples["num_objects"] > 0
    every = np.ones(len(some), bool)
    sides = np.sqrt(samples["height"] * samples["width"])
    measures: list[tuple[str, np.ndarray, np.ndarray, Callable]] = [
        (f"share of {kind}", (samples["kind"] == kind).astype(float), every, float)
        for kind, _ in Counter(samples["kind"]).most_common(MOST_KINDS)
    ]
    measures += [
        ("foreground share of an image", samples["foreground_share"], every, float),
        ("objects in an image", samples["num_objects"], every, float),
        ("median object, px", np.log(np.where(some, samples["object_px_median"] * samples["scale"], 1)), some, np.exp),
        ("side of an image, px", np.log(sides), every, np.exp),
    ]
    rows = []
    for name, values, counted, shown in measures:
        if not counted.any() or np.ptp(values[counted]) == 0:
            continue  # nothing that could differ
        mean, deviation, total = values[counted].mean(), values[counted].std(), counted.sum()
        row: dict = {"measure": name, "all": rounded(shown(mean)), "splits": {}}
        for split in SPLITS:
            own = values[within[split] & counted]
            if not len(own):
                row["splits"][split] = {"value": None, "errors": None}
                continue
            error = deviation / np.sqrt(len(own)) * np.sqrt((total - len(own)) / max(1, total - 1))
            off = (own.mean() - mean) / error if error else 0.0
            row["splits"][split] = {"value": rounded(shown(own.mean())), "errors": round(float(off), 2)}
        rows.append(row)
    return rows
