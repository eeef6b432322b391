"""The results of a search: a point for every trial and depth, the Pareto front, and the chosen point."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.core.numbers import say, short
from pipelines.core.sections.search import Search
from pipelines.tuning.candidate_costs import is_within

Point = dict[str, Any]  # a row of search.csv
SHOWN = {"macs": "MACs", "parameters": "parameters", "latency_ms": "ms", "memory_mib": "MiB per pass"}
RUNNERS_UP = 3


@dataclass(frozen=True)
class Trial:
    """One trial and its result."""

    number: int
    config: dict[str, Any]  # "widths" and the other searched keys
    status: str  # done | stopped | failed | left out | none
    reason: str
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch
    best: dict[str, float] = field(default_factory=dict)  # val IoU of the best epoch by depth: "L1" ...
    name: str = ""  # of its checkpoints


def measured(points: list[Point]) -> list[Point]:
    """Points with a val IoU, of trials that did not fail: one that diverged would also diverge in train."""
    return [point for point in points if point["val_iou"] is not None and point["status"] != "failed"]


def mark_front(points: list[Point], cost: str) -> None:
    """Set `on_front`: no other point is at least as accurate and as cheap, and better in one of the two."""
    there = measured(points)
    for point in points:
        point["on_front"] = int(point in there and not any(_beats(other, point, cost) for other in there))


def _beats(one: Point, other: Point, cost: str) -> bool:
    as_good = one["val_iou"] >= other["val_iou"] and one[cost] <= other[cost]
    return as_good and (one["val_iou"] > other["val_iou"] or one[cost] < other[cost])


def choose(points: list[Point], search: Search) -> tuple[Point, str, list[str]]:
    """The chosen point, the reason in a sentence, and the runners-up in a sentence each.

    It is the most accurate point within the budget; for `search.objective` front, the cheapest that is at most
    `search.tolerance_iou` below it. Ties go to the cheaper one.

    Args:
        points: at least one of them measured and within the budget.
    """
    cost = search.cost
    there = [point for point in measured(points) if is_within(point, search.budget)]
    best = max(there, key=lambda point: (point["val_iou"], -point[cost]))
    chosen, limits = best, [f"{name} {limit:g}" for name, limit in search.budget.model_dump().items() if limit]
    within = f" within the budget ({', '.join(limits)})" if limits else ""
    reason = f"the highest val IoU, {best['val_iou']:.4f}, of {len(there)} points{within}"
    if search.objective == "front":
        near = [point for point in there if point["val_iou"] >= best["val_iou"] - search.tolerance_iou]
        chosen = min(near, key=lambda point: (point[cost], -point["val_iou"]))
        reason = (
            f"the fewest {SHOWN[cost]} ({amount(chosen, cost)}) of {len(near)} points{within} whose val IoU is at most "
            f"{search.tolerance_iou:g} below the best, {best['val_iou']:.4f}"
        )
    others = [point for point in there if point is not chosen and point["on_front"]]
    others += [point for point in there if point is not chosen and not point["on_front"]]
    nearest = sorted(others, key=lambda point: (-point["on_front"], abs(point["val_iou"] - chosen["val_iou"])))
    return chosen, reason, [_compare(point, chosen, cost) for point in nearest[:RUNNERS_UP]]


def amount(point: Point, cost: str) -> str:
    """A cost in three digits."""
    return f"{point[cost]:.1f}" if cost in ("latency_ms", "memory_mib") else short(point[cost])


def name(point: Point) -> str:
    """A point as text: depth, widths, and other searched values."""
    others = ", ".join(f"{key} {say(value)}" for key, value in point["params"].items())
    return f"{point['depth']} of {point['widths']}" + (f" ({others})" if others else "")


def _compare(point: Point, chosen: Point, cost: str) -> str:
    difference = point["val_iou"] - chosen["val_iou"]
    how = f"{abs(difference):.4f} {'higher' if difference > 0 else 'lower'} in val IoU"
    ratio = point[cost] / chosen[cost]
    return f"{name(point)}: {how}, {ratio:.2f} times the {SHOWN[cost]}"


def importance(points: list[Point]) -> dict[str, float]:
    """How much of the variance of val IoU over the points each searched value explains alone: epsilon squared, 0 to 1.

    Values of a range are grouped into thirds. It is corrected for the number of groups (Kelley 1935), so that a value
    that explains nothing is about 0 even with many groups. Interactions of two values are not included.
    """
    there = measured(points)
    ious = np.array([point["val_iou"] for point in there])
    columns: dict[str, list] = {"widths": [p["widths"] for p in there], "depth": [p["depth"] for p in there]}
    for key in there[0]["params"] if there else ():
        columns[key] = _grouped([point["params"][key] for point in there])
    found = {}
    for key, values in columns.items():
        labels = [str(value) for value in values]
        num = len(set(labels))
        if num < 2 or len(there) - num < 1 or ious.var() == 0:
            continue
        inside = sum(
            float(((group := ious[[label == one for label in labels]]) - group.mean()) @ (group - group.mean()))
            for one in sorted(set(labels))
        )
        total = float(((ious - ious.mean()) ** 2).sum())
        found[key] = max(0.0, 1 - (inside / (len(there) - num)) / (total / (len(there) - 1)))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _grouped(values: list) -> list:
    """Numbers of a range as thirds by rank; a few distinct values unchanged."""
    if len({str(value) for value in values}) <= 4 or not all(isinstance(value, int | float) for value in values):
        return values
    return np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values).tolist()
