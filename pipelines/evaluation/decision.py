"""Which depth to deploy, and a sentence with the reason.

It is the smallest depth that is, with 95 % confidence, within the tolerance of the best, and that meets the budget: not
only the mean, but the whole paired 95 % interval of its difference from the best depth is inside the tolerance. If the
model separates objects, its depths are judged twice in this way: by IoU, and by the average precision (AP) of objects,
each against the best depth in that score. If no depth is close enough to both, the one with the best AP is
chosen, because such a model is trained for objects. The mean of the heads is not a candidate, because it costs more
than any depth. If the test images have no foreground, or no depth finds any of it, no depth is recommended.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.core.sections.delivery import Evaluate
from pipelines.evaluation.bootstrap import interval
from pipelines.evaluation.predictor import MEAN

# Limit in section `evaluate`: the number that it limits, and the format of both.
BUDGET = {
    "max_latency_ms": ("latency_ms", "{:.1f} ms", "{:g} ms"),
    "max_memory_mib": ("peak_memory_mib", "{:.1f} MiB", "{:g} MiB of memory"),
    "max_parameters": ("parameters", "{:,} parameters", "{:,} parameters"),
}
SURE = "with 95 % confidence"  # the whole interval of the difference
ROUNDING = 1e-9  # exactly the tolerance is inside it


class Score(NamedTuple):
    """A score by which depths are judged."""

    key: str  # in report.json
    name: str
    suffix: str  # of its keys in a candidate
    tolerance: float  # how far below the best a depth may be


def scores_of(settings: Evaluate, instances: bool) -> list[Score]:
    """IoU and, if the model separates objects, AP."""
    found = [Score("iou_image", "IoU", "", settings.tolerance_iou)]
    return found + [Score("dsb_ap", "AP", "_ap", settings.tolerance_ap)] * instances


@dataclass(frozen=True)
class Decision:
    depth: int | None
    nearest: int | None  # set if no depth is recommended
    sentence: str
    candidates: list[dict]  # a row per depth, see docs/measurements.md


def decide(
    depths: Mapping[str, dict],
    means: Mapping[str, Mapping[str, np.ndarray]],
    settings: Evaluate,
    instances: bool = False,
) -> Decision:
    """Choose a depth.

    Args:
        depths: the measured numbers by name, shallowest first.
        means: by score, the resampled means by name, paired (`scores.resample`).
        instances: the model separates objects.
    """
    single = {name: row for name, row in depths.items() if name != MEAN}
    scores = scores_of(settings, instances)
    bests = [max(single, key=lambda name, score=score: single[name][score.key]) for score in scores]
    best = bests[-1]  # by AP, if the model separates objects
    candidates = [_judge(name, bests, single, means, settings, scores) for name in single]
    if unknown := knows_nothing(row["recall"] for row in single.values()):
        return Decision(None, int(best[1:]), f"No depth is recommended: {unknown}.", candidates)
    allowed = [one for one in candidates if one["within_budget"]]
    chosen = next((one for one in allowed if one["within_tolerance"]), None)
    if chosen is None and not any(one["within_tolerance"] for one in candidates):  # the best by AP is too far by IoU
        chosen = next((one for one in allowed if one["name"] == best), None)
    if chosen is not None:
        sentence = _recommend(chosen, bests, candidates, single, settings, scores)
        return Decision(int(chosen["name"][1:]), None, sentence, candidates)
    budget = _budget(settings)
    if not allowed:
        nearest = min(single, key=lambda name: _excess(single[name], settings))
        sentence = (
            f"No depth is recommended: none meets the budget of {budget}; the nearest is {nearest}, with "
            f"{_costs(single[nearest], settings)}."
        )
    else:
        near = max(allowed, key=lambda one: single[one["name"]][scores[-1].key])
        nearest = near["name"]
        sentence = (
            f"No depth is recommended: of those that meet the budget of {budget} the nearest is {nearest}, "
            f"{_below_all(near, bests, scores)}, which is not within the {_tolerances(scores)} {SURE}."
        )
    return Decision(None, int(nearest[1:]), sentence, candidates)


def knows_nothing(recalls: Iterable[float | None]) -> str:
    """Why scores with these recalls mean nothing; empty if they do mean something."""
    known = [recall for recall in recalls if recall is not None]
    if not known:
        return "the test images have no foreground, so a network that finds nothing scores 1"
    return "" if any(known) else "none of the foreground in the test images was found"


def compare_with_masks(depths: Mapping[str, dict], means: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """A sentence on how depths differ more for objects than for masks, or "" if that is not certain.

    It names the depth with the largest excess of AP lost, relative to the best depth, over IoU lost. The paired
    intervals of the loss in AP and of that excess must both be above 0.
    """
    single = [name for name in depths if name != MEAN]
    best = max(single, key=lambda name: depths[name]["dsb_ap"])
    found = []
    for name in single:
        ap, iou = (means[key][best] - means[key][name] for key in ("dsb_ap", "iou_image"))
        gaps = [depths[best][key] - depths[name][key] for key in ("dsb_ap", "iou_image")]
        more = ap - np.sign(gaps[1]) * iou
        if interval(ap)[0] > 0 and interval(more)[0] > 0:
            found.append((gaps[0] - abs(gaps[1]), name, gaps, [interval(each) for each in (ap, iou, more)]))
    if not found:
        return ""
    extra, name, gaps, each = max(found)
    ap, iou, more = (f"{_points(gap)} {_range(*one)}" for gap, one in zip((*gaps, extra), each, strict=True))
    return (
        f"Depths differ more for objects than for masks: {name} is {ap} AP points below {best} and {iou} IoU points, "
        f"{more} points more."
    )


def _judge(
    name: str,
    bests: list[str],
    depths: Mapping[str, dict],
    means: Mapping[str, Mapping[str, np.ndarray]],
    settings: Evaluate,
    scores: list[Score],
) -> dict:
    row = depths[name]
    found: dict = {"name": name}
    said = []
    for score, best in zip(scores, bests, strict=True):
        below = depths[best][score.key] - row[score.key]
        low, high = interval(means[score.key][best] - means[score.key][name])
        keys = (f"below_best{score.suffix}{end}" for end in ("", "_low", "_high"))
        found |= dict(zip(keys, (below, low, high), strict=True))
        within = high <= score.tolerance + ROUNDING
        found["within_tolerance"] = found.get("within_tolerance", True) and within
        tolerance = f"the tolerance of {_points(score.tolerance)}"
        if name == best:
            said.append(f"the best {score.name} of all depths")
        else:
            verdict = f"within {tolerance}" if within else f"not within {tolerance} {SURE}"
            said.append(f"{_below(found, best, score)}, {verdict}")
    found["within_budget"] = _excess(row, settings) <= 1
    if _budget(settings):
        meets = "meets" if found["within_budget"] else "does not meet"
        said.append(f"{_costs(row, settings)}, {meets} the budget of {_budget(settings)}")
    return found | {"why": "; ".join(said)}


def _recommend(
    chosen: dict,
    bests: list[str],
    candidates: list[dict],
    depths: Mapping[str, dict],
    settings: Evaluate,
    scores: list[Score],
) -> str:
    name, best = chosen["name"], bests[-1]
    tolerance = _tolerances(scores)
    end = f"; its {_costs(depths[name], settings)} meet the budget" if _budget(settings) else ""
    values = " and ".join(f"{score.name} {depths[name][score.key]:.3f}" for score in scores)
    if len(candidates) == 1:
        return f"{name} is recommended: it is the only depth of this network with a head, with {values}{end}."
    if not chosen["within_tolerance"]:
        return (
            f"{name} is recommended: it has the best AP of all depths, {depths[name]['dsb_ap']:.3f}, and no depth is "
            f"within the {tolerance} {SURE}: it is {_below(chosen, bests[0], scores[0])}{end}."
        )
    if {name} != set(bests):
        speed = depths[best]["latency_ms"] / depths[name]["latency_ms"]
        faster = f", {speed:.1f} times as fast" if speed >= 1.05 else ""
        return f"{name} is recommended: {_below_all(chosen, bests, scores)}, within the {tolerance}{faster}{end}."
    smaller = candidates[: candidates.index(chosen)]
    names = " and ".join(score.name for score in scores)
    found = " and ".join(f"{depths[name][score.key]:.3f}" for score in scores)
    start = f"{name} is recommended: it has the best {names} of all depths, {found}"
    if not smaller:
        return f"{start}, and is the smallest{end}."
    if any(one["within_tolerance"] for one in smaller):
        return f"{start}, and the smaller ones within the {tolerance} do not meet the budget{end}."

    def excess(one: dict) -> float:
        return max(one[f"below_best{score.suffix}_high"] - score.tolerance for score in scores)

    near = min(smaller, key=excess)
    return (
        f"{start}, and no smaller one is within the {tolerance} {SURE}: {near['name']} is "
        f"{_below_all(near, bests, scores)}{end}."
    )


def _excess(row: dict, settings: Evaluate) -> float:
    """The largest share of a limit that a depth uses; above 1 it does not meet the budget. 0 without limits."""
    shares = [row[key] / limit for name, (key, *_) in BUDGET.items() if (limit := getattr(settings, name)) is not None]
    return max(shares, default=0.0)


def _budget(settings: Evaluate) -> str:
    """The limits of the budget, in words."""
    values = ((getattr(settings, name), text) for name, (_, _, text) in BUDGET.items())
    return " and ".join(text.format(value) for value, text in values if value is not None)


def _costs(row: dict, settings: Evaluate) -> str:
    """What a depth uses of the limits of the budget, in words."""
    items = BUDGET.items()
    by = "" if settings.engine == "torch" else f" by {settings.engine}"
    return " and ".join(
        text.format(row[key]) + (by if key == "latency_ms" else "")
        for name, (key, text, _) in items
        if getattr(settings, name) is not None
    )


def _below(candidate: dict, best: str, score: Score) -> str:
    below, low, high = (candidate[f"below_best{score.suffix}{end}"] for end in ("", "_low", "_high"))
    return f"{_points(below)} {score.name} points below {best} {_range(low, high)}"


def _below_all(candidate: dict, bests: list[str], scores: list[Score]) -> str:
    """How far a depth is below the best, in each score in which it is not the best itself."""
    pairs = [(best, score) for best, score in zip(bests, scores, strict=True) if best != candidate["name"]]
    said = " and ".join(_below(candidate, best, score) for best, score in pairs)
    best_in = [score.name for best, score in zip(bests, scores, strict=True) if best == candidate["name"]]
    return said + "".join(f", with the best {name}" for name in best_in)


def _tolerances(scores: list[Score]) -> str:
    if len({score.tolerance for score in scores}) == 1:
        return f"tolerance of {_points(scores[0].tolerance)}" + (" in both" if len(scores) > 1 else "")
    return "tolerances of " + " and ".join(f"{_points(score.tolerance)} in {score.name}" for score in scores)


def _range(low: float, high: float) -> str:
    return f"[{_points(low)}, {_points(high)}]"


def _points(iou: float) -> str:
    """Hundredths: 0.004 is '0.4'; zero has no sign."""
    return f"{iou * 100:.1f}".replace("-0.0", "0.0") if abs(iou) < 0.0005 else f"{iou * 100:.1f}"
