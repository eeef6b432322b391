"""Which depth to deploy, and a sentence that says why.

It is the smallest depth that is surely not much worse than the best, and that meets the budget. "Surely": not its
mean alone, the whole paired 95 % interval of its difference from the best depth lies inside the tolerance. The mean
of the heads is no candidate, since it costs more than any depth. Where the test images have no foreground, or no depth
finds any of it, nothing is known and nothing recommended.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.core.delivery_sections import Evaluate
from pipelines.evaluation.bootstrap import interval
from pipelines.evaluation.predictor import MEAN

# Limit in section `evaluate`: the number that it limits, and how both are written.
BUDGET = {
    "max_latency_ms": ("latency_ms", "{:.1f} ms", "{:g} ms"),
    "max_memory_mib": ("peak_memory_mib", "{:.1f} MiB", "{:g} MiB of memory"),
    "max_parameters": ("parameters", "{:,} parameters", "{:,} parameters"),
}
ROUNDING = 1e-9  # exactly the tolerance is inside it


@dataclass(frozen=True)
class Decision:
    depth: int | None
    nearest: int | None  # where no depth is recommended
    sentence: str
    candidates: list[dict]  # a row a depth, see docs/measurements.md


def decide(depths: Mapping[str, dict], means: Mapping[str, np.ndarray], settings: Evaluate) -> Decision:
    """Choose a depth.

    Args:
        depths: the measured numbers by name, shallowest first.
        means: resampled means of iou_image by name, paired (`intervals.bootstrap`).
    """
    single = {name: row for name, row in depths.items() if name != MEAN}
    best = max(single, key=lambda name: single[name]["iou_image"])
    candidates = [_judge(name, best, single, means, settings) for name in single]
    if unknown := knows_nothing(row["recall"] for row in single.values()):
        return Decision(None, int(best[1:]), f"No depth is recommended: {unknown}.", candidates)
    allowed = [one for one in candidates if one["within_budget"]]
    chosen = next((one for one in allowed if one["within_tolerance"]), None)
    if chosen is not None:
        sentence = _recommend(chosen, best, candidates, single, settings)
        return Decision(int(chosen["name"][1:]), None, sentence, candidates)
    budget = _budget(settings)
    if not allowed:
        nearest = min(single, key=lambda name: _excess(single[name], settings))
        sentence = (
            f"No depth is recommended: none meets the budget of {budget}; the nearest is {nearest}, with "
            f"{_costs(single[nearest], settings)}."
        )
    else:
        near = max(allowed, key=lambda one: single[one["name"]]["iou_image"])
        nearest = near["name"]
        sentence = (
            f"No depth is recommended: of those that meet the budget of {budget} the nearest is {nearest}, "
            f"{_below(near, best)}, which is not surely within the tolerance of {_points(settings.tolerance_iou)}."
        )
    return Decision(None, int(nearest[1:]), sentence, candidates)


def knows_nothing(recalls: Iterable[float | None]) -> str:
    """Why the scores of these recalls say nothing of the depths, or no word."""
    known = [recall for recall in recalls if recall is not None]
    if not known:
        return "the test images have no foreground, so that what finds nothing scores 1"
    return "" if any(known) else "none of the foreground in the test images is found"


def _judge(name: str, best: str, depths: Mapping[str, dict], means: Mapping[str, np.ndarray], settings) -> dict:
    row = depths[name]
    low, high = interval(means[best] - means[name])
    found = {
        "name": name,
        "below_best": depths[best]["iou_image"] - row["iou_image"],
        "below_best_low": low,
        "below_best_high": high,
        "within_tolerance": high <= settings.tolerance_iou + ROUNDING,
        "within_budget": _excess(row, settings) <= 1,
    }
    tolerance = f"tolerance of {_points(settings.tolerance_iou)}"
    if name == best:
        why = "the best IoU of all depths"
    else:
        why = f"{_below(found, best)}, {'within' if found['within_tolerance'] else 'not surely within'} the {tolerance}"
    if _budget(settings):
        meets = "meets" if found["within_budget"] else "does not meet"
        why += f"; {_costs(row, settings)}, {meets} the budget of {_budget(settings)}"
    return found | {"why": why}


def _recommend(chosen: dict, best: str, candidates: list[dict], depths: Mapping[str, dict], settings: Evaluate) -> str:
    name = chosen["name"]
    tolerance = _points(settings.tolerance_iou)
    end = f"; its {_costs(depths[name], settings)} meet the budget" if _budget(settings) else ""
    if len(candidates) == 1:
        iou = depths[name]["iou_image"]
        return f"{name} is recommended: it is the only depth of this network that has a head, of IoU {iou:.3f}{end}."
    if name != best:
        speed = depths[best]["latency_ms"] / depths[name]["latency_ms"]
        faster = f", {speed:.1f} times as fast" if speed >= 1.05 else ""
        return f"{name} is recommended: {_below(chosen, best)}, within the tolerance of {tolerance}{faster}{end}."
    smaller = candidates[: candidates.index(chosen)]
    start = f"{name} is recommended: it has the best IoU of all depths, {depths[name]['iou_image']:.3f}"
    if not smaller:
        return f"{start}, and is the smallest{end}."
    if any(one["within_tolerance"] for one in smaller):
        return f"{start}, and the smaller ones within the tolerance of {tolerance} do not meet the budget{end}."
    near = min(smaller, key=lambda one: one["below_best_high"])
    return (
        f"{start}, and no smaller one is surely within the tolerance of {tolerance}: {near['name']} is "
        f"{_below(near, best)}{end}."
    )


def _excess(row: dict, settings: Evaluate) -> float:
    """The largest share of a limit that a depth needs; above 1 it does not meet the budget. 0 without limits."""
    shares = [row[key] / limit for name, (key, *_) in BUDGET.items() if (limit := getattr(settings, name)) is not None]
    return max(shares, default=0.0)


def _budget(settings: Evaluate) -> str:
    """The limits that are set, in words."""
    values = ((getattr(settings, name), text) for name, (_, _, text) in BUDGET.items())
    return " and ".join(text.format(value) for value, text in values if value is not None)


def _costs(row: dict, settings: Evaluate) -> str:
    """What a depth needs of the limits that are set, in words."""
    items = BUDGET.items()
    by = "" if settings.engine == "torch" else f" by {settings.engine}"
    return " and ".join(
        text.format(row[key]) + (by if key == "latency_ms" else "")
        for name, (key, text, _) in items
        if getattr(settings, name) is not None
    )


def _below(candidate: dict, best: str) -> str:
    low, high = candidate["below_best_low"], candidate["below_best_high"]
    return f"{_points(candidate['below_best'])} IoU points below {best} [{_points(low)}, {_points(high)}]"


def _points(iou: float) -> str:
    """Hundredths: 0.004 is '0.4'; what rounds to nothing has no sign."""
    return f"{iou * 100:.1f}".replace("-0.0", "0.0") if abs(iou) < 0.0005 else f"{iou * 100:.1f}"
