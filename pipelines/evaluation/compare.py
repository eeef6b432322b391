"""Two models on the same test images: paired differences and their intervals.

An interval is over groups, not images: images that belong together (tiles of a slide, shots of a patient) are drawn
together, because their errors are similar. Both models are scored on each drawn group, so images that are hard for both
do not widen the interval of their difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.bootstrap import bootstrap, interval
from pipelines.evaluation.cautions import says_objects
from pipelines.evaluation.scored import OF_OBJECTS, SCORES, Scored
from unetpp.errors import UserError


@dataclass(frozen=True)
class Difference:
    """Candidate minus other: the mean over the common images, and its 95 % interval."""

    mean: float
    low: float
    high: float
    num_images: int
    num_groups: int


def paired_difference(
    candidate: Mapping[str, float], other: Mapping[str, float], groups: Mapping[str, str]
) -> Difference:
    """The difference of two models' scores on the images on which both were scored.

    Args:
        candidate, other: score (such as IoU) by image id; higher is better.
        groups: group by image id; an image without one is its own group.

    Returns:
        candidate minus other: the mean over images, and percentiles of that mean over 2000 resamples of the groups
        (the same in every call). With a single group, the interval is just the mean.

    Raises:
        UserError: there is no image in common.
    """
    ids = sorted(candidate.keys() & other.keys())
    if not ids:
        raise UserError(
            f"found no image in common among the {len(candidate)} of one model and the {len(other)} of the other; "
            "expected models scored on the same test images: evaluate both on the same prepared folder"
        )
    differences = np.array([candidate[id_] - other[id_] for id_ in ids])
    # A tuple, so that an image without a group is not mixed up with a group of the same name.
    names = [("group", groups[id_]) if groups.get(id_) else ("image", id_) for id_ in ids]
    numbers = {name: str(number) for number, name in enumerate(dict.fromkeys(names))}
    means = bootstrap({"difference": differences}, [numbers[name] for name in names])["difference"]
    return Difference(float(differences.mean()), *interval(means), len(ids), len(numbers))


@dataclass(frozen=True)
class Evaluation:
    """What stage evaluate wrote about a model."""

    report: dict  # report.json
    scored: Mapping[str, Scored]  # images.csv, by depth
    version_depth: int | None = None  # the depth, if a registered version was named; None for a whole evaluation

    @property
    def depth(self) -> str | None:
        """The depth to compare: that of the version, or the recommended one, if any."""
        depth = self.report.get("recommended_depth") if self.version_depth is None else self.version_depth
        return None if depth is None else f"L{depth}"

    @property
    def groups(self) -> Mapping[str, str]:
        """The group of every scored image."""
        return next(iter(self.scored.values())).groups

    @property
    def test_sha256(self) -> str | None:
        return self.report.get("test", {}).get("sha256")

    @property
    def true_objects(self) -> str:
        """What its true objects are; in reports of earlier versions, always connected pixels."""
        return (self.report.get("objects") or {}).get("true", "components")


@dataclass(frozen=True)
class Row:
    """Two depths on their common images: the mean score of each, and the difference, second minus first."""

    names: tuple[str, str]
    means: tuple[float, float]
    difference: Difference

    @property
    def verdict(self) -> str:
        if self.difference.low > 0:
            return "B is better"
        return "A is better" if self.difference.high < 0 else "no difference shown"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations side by side: a table for each score, and how comparable they are."""

    sides: tuple[Evaluation, Evaluation]  # A and B
    num_images: tuple[int, int]
    common: list[str]  # ids
    tables: dict[str, list[Row]]  # by score: the two chosen depths, or all that both evaluations have
    chosen: Row | None  # IoU of the two chosen depths; None if one evaluation recommends no depth
    changed: list[tuple[str, float, float]]  # id and both IoUs in that row, from the largest loss to the largest gain
    chosen_ap: Row | None = None  # the same for average precision, if scores of objects add anything

    @property
    def remark(self) -> str:
        """To what extent the two are comparable."""
        if self.sides[0].true_objects == self.sides[1].true_objects:
            return self._images
        return (
            f"{self._images.removesuffix('.')}. Scores of objects are not compared: in one, true objects are "
            "connected pixels, in the other they are numbered in the data; evaluate the older one again."
        )

    @property
    def _images(self) -> str:
        ours, theirs = self.num_images
        hashes = [side.test_sha256 for side in self.sides]
        if None not in hashes and hashes[0] == hashes[1] and len(self.common) == ours == theirs:
            return f"Both were scored on the same {ours} test images."
        these = f"{len(self.common)} of A's {ours} and B's {theirs} test images are in both; only these are compared"
        if None not in hashes and hashes[0] != hashes[1]:
            return f"The test splits differ: {these}, matched by id alone."
        return f"{these}, and the reports do not say whether these are the same images."


def compare(one: Evaluation, other: Evaluation) -> Comparison:
    """Compare two evaluations, A and B; every difference is B minus A, on the images on which both were scored.

    A registered version is one depth: if one of the two is a version, only the two chosen depths are compared, else all
    that both have, and the recommended ones.

    Raises:
        UserError: no image or no depth in common, or no scores of the chosen depth.
    """
    sides = (one, other)
    for side, name in zip(sides, "AB", strict=True):
        if side.depth is not None and side.depth not in side.scored:
            raise UserError(
                f"found the depths {', '.join(side.scored)} in {name}; expected {side.depth}, which is "
                f"{'recommended' if side.version_depth is None else 'that of the version'}"
            )
    groups = {**other.groups, **{id_: group for id_, group in one.groups.items() if group}}

    def scores(score: str, depths: tuple[str, str]) -> tuple[Mapping[str, float], Mapping[str, float]]:
        sides = one.scored[depths[0]], other.scored[depths[1]]
        common = set(sides[0].common(sides[1]))
        a, b = ({id_: value for id_, value in getattr(side, score).items() if id_ in common} for side in sides)
        return a, b

    def row(score: str, depths: tuple[str, str]) -> Row:
        a, b = scores(score, depths)
        both = sorted(a.keys() & b.keys())
        means = tuple(float(np.mean([values[id_] for id_ in both])) if both else 0.0 for values in (a, b))
        return Row(depths, (means[0], means[1]), paired_difference(b, a, groups))

    meant = None if one.depth is None or other.depth is None else (one.depth, other.depth)
    of_versions = any(side.version_depth is not None for side in sides)
    pairs = [meant] if meant and of_versions else [(name, name) for name in one.scored if name in other.scored]
    if not pairs:
        found = (", ".join(side.scored) for side in sides)
        raise UserError("found the depths {} in A and {} in B; expected one in common".format(*found))
    by_ap = one.true_objects == other.true_objects and any(says_objects(side.report) for side in sides)
    known = [score for score in SCORES if one.true_objects == other.true_objects or score not in OF_OBJECTS]
    tables = {score: [row(score, pair) for pair in pairs if all(scores(score, pair))] for score in known}
    tables = {score: rows for score, rows in tables.items() if rows}
    chosen = row("iou", meant) if meant else None
    a, b = scores("iou", meant or pairs[-1])
    changed = sorted(a.keys() & b.keys(), key=lambda id_: (b[id_] - a[id_], id_))
    return Comparison(
        sides,
        (len(one.groups), len(other.groups)),
        sorted(one.groups.keys() & other.groups.keys()),
        tables,
        chosen,
        [(id_, a[id_], b[id_]) for id_ in changed],
        row("ap", meant) if meant and by_ap and all(scores("ap", meant)) else None,
    )
