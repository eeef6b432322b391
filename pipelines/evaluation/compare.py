"""Two models on the same test images: paired differences and their intervals.

An interval is over groups, not images: what belongs together (tiles of a slide, shots of a patient) is drawn
together, since its errors are alike. Both models are scored on each drawn group, so that what is hard for both
does not widen the interval of their difference.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.evaluation.bootstrap import bootstrap, interval
from unetpp.errors import UserError

SCORES = {"iou": "IoU", "boundary_f1": "Boundary F1", "object_f1": "Object F1"}  # columns of images.csv, then _L1 ...


@dataclass(frozen=True)
class Difference:
    """The mean over the common images of candidate minus other, and its 95 % interval."""

    mean: float
    low: float
    high: float
    num_images: int
    num_groups: int


def paired_difference(candidate: dict[str, float], other: dict[str, float], groups: dict[str, str]) -> Difference:
    """The difference of two models' scores on the images that both were scored on.

    Args:
        candidate, other: score (IoU, say) by image id; higher is better.
        groups: group by image id; an image without one is a group of its own.

    Returns:
        candidate minus other: the mean over images, and percentiles of that mean over 2000 resamples of the groups
        (the same ones at every call). One group alone gives no interval but the mean itself.

    Raises:
        UserError: no image in common.
    """
    ids = sorted(candidate.keys() & other.keys())
    if not ids:
        raise UserError(
            f"found no image in common among the {len(candidate)} of the one and the {len(other)} of the other; "
            "expected models scored on the same test images: evaluate both on one prepared folder"
        )
    differences = np.array([candidate[id_] - other[id_] for id_ in ids])
    # A tuple, so that an image without a group shares none with a group that is called as it is.
    names = [("group", groups[id_]) if groups.get(id_) else ("image", id_) for id_ in ids]
    numbers = {name: str(number) for number, name in enumerate(dict.fromkeys(names))}
    means = bootstrap({"difference": differences}, [numbers[name] for name in names])["difference"]
    return Difference(float(differences.mean()), *interval(means), len(ids), len(numbers))


@dataclass(frozen=True)
class Scored:
    """What images.csv holds: a score of each image at each depth, and the image's group."""

    scores: dict[str, dict[str, dict[str, float]]]  # of SCORES, by depth, by image id
    groups: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "Scored":
        """Raises UserError: no such file, or none that evaluate wrote."""
        scores: dict[str, dict[str, dict[str, float]]] = {score: {} for score in SCORES}
        groups: dict[str, str] = {}
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    groups[row["id"]] = row.get("group") or ""
                    for score, by_depth in scores.items():
                        for column, text in row.items():
                            depth = column.removeprefix(f"{score}_")
                            if column != depth and text:
                                by_depth.setdefault(depth, {})[row["id"]] = float(text)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{path}: cannot be read ({error!r}); expected what `dvc repro evaluate` writes") from None
        if not scores["iou"]:
            raise UserError(
                f"{path}: found no column iou_L1, iou_L2 ...; expected the images.csv of the evaluate stage"
            )
        return cls(scores, groups)


@dataclass(frozen=True)
class Row:
    """Two depths on their common images: the mean score of each, and the second minus the first."""

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
    """Two evaluations side by side: report.json of each, a table for each score, and how well they match."""

    reports: tuple[dict, dict]
    num_images: tuple[int, int]
    common: list[str]  # ids
    same_data: bool | None  # None: one of them does not say what it was measured on
    tables: dict[str, list[Row]]  # by score, the depths that both have
    recommended: Row | None  # of IoU; None where one of them recommends no depth
    changed: list[tuple[str, float, float]]  # id and both IoUs of that row, from the most lost to the most won

    @property
    def remark(self) -> str:
        """How far the two can be compared, in a sentence."""
        ours, theirs = self.num_images
        if self.same_data and len(self.common) == ours == theirs:
            return f"Both were scored on the same {ours} test images."
        these = f"{len(self.common)} test images are in both, of {ours} of A and {theirs} of B; only these are compared"
        if self.same_data is False:
            return f"The test splits differ: {these}, and only their ids say that they are the same pictures."
        return f"{these}, and the reports do not say whether they are the same pictures."


def compare(one: tuple[dict, Scored], other: tuple[dict, Scored]) -> Comparison:
    """Compare two evaluations, A and B; every difference is B minus A, on the images that both were scored on.

    Args:
        one, other: report.json and images.csv of A and of B.

    Raises:
        UserError: no image or no depth in common.
    """
    reports, scored = (one[0], other[0]), (one[1], other[1])
    groups = scored[1].groups | {id_: group for id_, group in scored[0].groups.items() if group}

    def row(score: str, names: tuple[str, str]) -> Row:
        a, b = (each.scores[score][name] for each, name in zip(scored, names, strict=True))
        both = sorted(a.keys() & b.keys())
        means = tuple(float(np.mean([values[id_] for id_ in both])) if both else 0.0 for values in (a, b))
        return Row(names, (means[0], means[1]), paired_difference(b, a, groups))

    tables = {}
    for score in SCORES:
        depths = [name for name in scored[0].scores[score] if name in scored[1].scores[score]]
        if depths:
            tables[score] = [row(score, (name, name)) for name in depths]
    if "iou" not in tables:
        found = (", ".join(each.scores["iou"]) for each in scored)
        raise UserError("found the depths {} in A and {} in B; expected one in common".format(*found))
    depths = [report.get("recommended_depth") for report in reports]
    chosen = None if None in depths else row("iou", (f"L{depths[0]}", f"L{depths[1]}"))
    hashes = [report.get("test", {}).get("sha256") for report in reports]
    shown = chosen or tables["iou"][-1]
    a, b = (each.scores["iou"][name] for each, name in zip(scored, shown.names, strict=True))
    common = sorted(a.keys() & b.keys(), key=lambda id_: (b[id_] - a[id_], id_))
    return Comparison(
        reports,
        (len(scored[0].groups), len(scored[1].groups)),
        sorted(scored[0].groups.keys() & scored[1].groups.keys()),
        None if None in hashes else hashes[0] == hashes[1],
        tables,
        chosen,
        [(id_, a[id_], b[id_]) for id_ in common],
    )
