"""The depth report: what evaluate measured, as one self-contained page."""

from pathlib import Path

import numpy as np

from pipelines.core.files import read_results
from pipelines.core.numbers import fixed, points
from pipelines.evaluation.cautions import find_cautions, says_objects
from pipelines.pages.depth_charts import accuracy_against_latency, differences, reliability
from pipelines.pages.html_page import render
from pipelines.pages.viewer import Sample, picture, read_samples
from unetpp.images.display import SAID, class_colour
from unetpp.network.masks import IGNORE

# The scores of a depth in the order of the page: key, label, explanation. Each may be missing.
SCORES = (
    ("iou_image", "IoU per image", "foreground IoU, mean over images"),
    ("iou_image_seen", "IoU at the network's size", "the same at the size that the network sees"),
    ("iou_pixels", "IoU of all pixels", "of the pixels of all images together"),
    ("iou_paper", "IoU as in the paper", "mean of background and foreground, as in the paper's released code"),
    ("miou", "mIoU", "all named classes, including background, over the pixels of all images, as papers report it"),
    ("dice_image", "Dice per image", "foreground Dice, mean over images"),
    ("dice_pixels", "Dice of all pixels", "of the pixels of all images together"),
    ("dice_paper", "Dice as in the paper", "mean of background and foreground"),
    ("precision", "Precision", "share of the predicted pixels that are right"),
    ("recall", "Recall", "share of the true pixels that were predicted"),
    ("boundary_f1", "Boundary F1", "agreement of the outlines, within some pixels"),
    ("hd95_px", "Hausdorff distance, px", "95 % of each outline is nearer than this to the other; lower is better"),
    ("object_f1", "Object F1", "objects matched one to one, at an IoU above 0.5"),
    ("dsb_ap", "Average precision (AP)", "of the Data Science Bowl 2018: objects at IoU 0.5 to 0.95, the mean"),
)
LOWER_IS_BETTER = {"hd95_px"}
# The scores of a group of images, a class or an object size, in this order; below, the keys of their counts.
GROUP_SCORES = {
    "iou_image": "IoU per image",
    "object_recall": "Recall of objects",
    "object_f1": "Object F1",
    "object_iou": "IoU of objects",
    "recall": "Recall",
}
BUDGET = ("max_latency_ms", "max_memory_mib", "max_parameters")
GROUP_COUNTS = ("num_images", "num_objects")
OTHERS = ("extremes", "shown", "rule", "provenance")  # keys of page.json, as arguments of `build_report`
GROUPS = {"class": "class", "size": "size", "kind": "kind of image"}


def recommended(metrics: dict) -> str | None:
    """The name of the recommended depth, such as L2, or None."""
    depth = metrics["recommended_depth"]
    return None if depth is None else f"L{depth}"


def build_page(folder: Path) -> str:
    """The page, from the folder that stage evaluate wrote for it."""
    facts, samples = read_page(folder)
    return build_report(facts["report"], facts["rows"], samples, *(facts[key] for key in OTHERS))


def read_page(folder: Path) -> tuple[dict, list[Sample]]:
    """Read what stage evaluate wrote for the page: page.json, and the images in shown.npz.

    Raises:
        UserError: one of them is missing, unreadable, or does not belong to the other.
    """
    facts = read_results(folder / "page.json", "evaluate", ("report", "rows", "samples", *OTHERS))
    return facts, read_samples(folder / "shown.npz", facts)


def build_report(
    metrics: dict,
    rows: list[dict],
    samples: list[Sample],
    extremes: dict[str, dict[str, int]],
    shown: str,
    rule: dict,
    provenance: dict,
) -> str:
    """The page, self-contained.

    Args:
        metrics: the contents of report.json (docs/measurements.md); the page omits what is missing.
        rows: the rows of images.csv.
        samples: the images to show.
        extremes: for each name, the index in `rows` of its best, median and worst image.
        shown: the name by which `samples` were ranked.
        rule: tolerance_iou and max_latency_ms of the recommendation, and the number of resamples.
        provenance: the origin of the numbers, by label.
    """
    names = list(metrics["depths"])
    chosen = recommended(metrics)
    decision = {key: rule.get(key) for key in ("tolerance_iou", "max_latency_ms")} | metrics.get("decision", {})
    decision["candidates"] = {one["name"]: one for one in decision.get("candidates", [])}
    other, compared = _compare_depths(metrics, decision["candidates"])
    multilabel, background = metrics.get("multilabel", False), metrics.get("background", True)
    return render(
        "report.html.j2",
        script="viewer.js",
        metrics=metrics,
        names=names,
        recommended=chosen,
        budget=any(decision.get(key) is not None for key in BUDGET),
        nearest=f"L{metrics['nearest_depth']}" if metrics.get("nearest_depth") else None,
        decision=decision,
        other=other,
        compared=compared,
        objects=metrics.get("objects") if says_objects(metrics) else None,
        cautions=find_cautions(metrics),
        headline=_headline(metrics, other, compared),
        latency_chart=accuracy_against_latency(
            metrics["depths"], chosen, decision["tolerance_iou"], decision["max_latency_ms"]
        ),
        difference_chart=differences(compared, other, chosen, decision["tolerance_iou"]),
        reliability_chart=reliability(metrics.get("reliability", {}), chosen),
        pictures=_in_order([picture(sample, names, multilabel, background) for sample in samples], shown),
        errors=_errors(samples, background),
        classes=_class_colours(metrics, names, background),
        extremes={name: {rank: rows[index] for rank, index in picked.items()} for name, picked in extremes.items()},
        shown=shown,
        scores=_scores(metrics["depths"]),
        devices=metrics.get("devices") or [{"machine": metrics.get("machine", {}), "depths": metrics["depths"]}],
        measured=lambda key: any(row.get(key) is not None for row in metrics["depths"].values()),
        engines=_engines(metrics),
        groups=_groups(metrics, rows, names),
        gates=_gates(metrics.get("gates") or {}, chosen),
        intervals=metrics.get("intervals", {}),
        rule=rule,
        provenance={key: value for key, value in provenance.items() if value is not None},
    )


def _compare_depths(metrics: dict, candidates: dict[str, dict]) -> tuple[str, dict[str, tuple[float, float, float]]]:
    """The depth with which the others are compared, and the paired difference of each: mean, low, high.

    It is the best depth, as in the decision, or the deepest if the report has only those differences.
    """
    below = ("below_best", "below_best_low", "below_best_high")
    if candidates and all(one.get(key) is not None for one in candidates.values() for key in below):
        rows = {name: (-one[below[0]], -one[below[2]], -one[below[1]]) for name, one in candidates.items()}
        best = min(candidates, key=lambda name: candidates[name]["below_best"])
        return f"{best}, the best", rows
    keys = ("difference_iou", "difference_iou_low", "difference_iou_high")
    depths = metrics["depths"].items()
    rows = {name: tuple(row[key] for key in keys) for name, row in depths if all(row.get(k) is not None for k in keys)}
    deepest = max((name for name in metrics["depths"] if name != "mean"), key=lambda name: int(name[1:]))
    return f"{deepest}, the deepest", rows


def _headline(metrics: dict, other: str, compared: dict) -> list[dict[str, str]]:
    """The main numbers for a decision, for the recommended or the nearest depth."""
    depth = metrics["recommended_depth"] or metrics.get("nearest_depth")
    if depth is None or f"L{depth}" not in metrics["depths"]:
        return []
    name = f"L{depth}"
    row, against = metrics["depths"][name], other.split(",")[0]
    facts = [{"what": f"IoU per image of {name}", "value": fixed(row["iou_image"])}]
    if row.get("iou_image_low") is not None:
        facts[0]["note"] = f"{fixed(row['iou_image_low'])} to {fixed(row['iou_image_high'])}"
    if name in compared and name != against:
        mean, low, high = compared[name]
        facts.append({"what": f"points against {against}", "value": points(mean)})
        facts[-1]["note"] = f"{points(low)} to {points(high)}"
    if says_objects(metrics) and row.get("dsb_ap_low") is not None:
        facts.append({"what": f"average precision of {name}", "value": fixed(row.get("dsb_ap"))})
        facts[-1]["note"] = f"{fixed(row['dsb_ap_low'])} to {fixed(row.get('dsb_ap_high'))}"
    if row.get("latency_ms") is not None:
        facts.append({"what": "median latency per image", "value": f"{fixed(row['latency_ms'], 1)} ms"})
        slower = metrics["depths"][against].get("latency_ms") if against != name else None
        if slower and slower / row["latency_ms"] >= 1.05:
            facts[-1]["note"] = f"{against} takes {slower / row['latency_ms']:.1f} times as long"
    gates = (metrics.get("gates") or {}).get(name) or []
    if gates:
        gates = [gate for gate in gates if gate["passed"] is not None]
        failed = [gate["name"] for gate in gates if not gate["passed"]]
        facts.append({"what": "gates passed", "value": f"{len(gates) - len(failed)} of {len(gates)}"})
        facts[-1]["note"] = f"not passed: {', '.join(failed)}" if failed else ""
    return facts


def _class_colours(metrics: dict, names: list[str], background: bool) -> list[tuple[str, tuple[int, int, int]]]:
    """Each class or label and its colour in masks; none for a single class without a name."""
    classes = list((metrics.get("classes") or {}).get(names[0], {}))
    named = [(name, class_colour(number)) for number, name in enumerate(classes, int(background))]
    return [] if classes in ([], ["1"]) else named


def _errors(samples: list[Sample], background: bool) -> dict[str, str]:
    """The meanings of the error colours that may occur, by name."""
    confused = any(((sample.mask > 1) & (sample.mask != IGNORE)).any() for sample in samples)
    shown = {"extra": background, "missed": background, "confused": confused or not background}
    shown["ignored"] = any((sample.mask == IGNORE).any() for sample in samples)
    return {name: what for name, what in SAID.items() if shown.get(name, True)}


def _in_order(pictures: list[dict], shown: str) -> list[dict]:
    """From the best to the worst image at the shown depth."""
    return sorted(pictures, key=lambda one: (-(one["row"].get(f"iou_{shown}") or 0), one["row"]["id"]))


def _scores(depths: dict[str, dict]) -> list[dict]:
    """A row for each score that any depth has: its numbers, intervals, and the best of them."""
    found = []
    for key, label, what in SCORES:
        values = {name: row.get(key) for name, row in depths.items()}
        known = [value for value in values.values() if value is not None]
        if not known:
            continue
        best = min(known) if key in LOWER_IS_BETTER else max(known)
        digits = 1 if key.endswith("_px") else 3
        cells = {
            name: {
                "value": fixed(value, digits),
                "low": fixed(depths[name].get(f"{key}_low"), digits),
                "high": fixed(depths[name].get(f"{key}_high"), digits),
                "interval": depths[name].get(f"{key}_low") is not None,
                "best": value == best and min(known) < max(known),
            }
            for name, value in values.items()
        }
        found.append({"key": key, "label": label, "what": what, "cells": cells})
    return found


def _groups(metrics: dict, images: list[dict], names: list[str]) -> list[dict]:
    """A table for each way to divide the test split: the parts, the size of each, and their scores by name."""
    groups = metrics.get("groups") or {}
    if not groups.get("kind"):
        groups = groups | {"kind": _by_kind(images, names)}
    if not groups.get("class"):
        classes = metrics.get("classes") or {}
        parts = classes.get(names[0], {})
        groups = groups | {"class": {one: {n: {"iou_image": classes[n].get(one)} for n in classes} for one in parts}}
    tables = []
    for way, title in GROUPS.items():
        parts = groups.get(way) or {}
        if len(parts) < 2 and way != "size":
            continue  # for a single class or kind, the other tables show the same
        rows = [part.get(name) or {} for part in parts.values() for name in names]
        scored = [score for score in GROUP_SCORES if any(score in row for row in rows)]
        counts = next((key for key in GROUP_COUNTS if any(key in part for part in parts.values())), None)
        for score in scored[:2]:
            label = f"{GROUP_SCORES[score]} by {title}"
            tables.append({"label": label, "by": title, "score": score, "counts": counts, "parts": parts})
    return tables


def _by_kind(rows: list[dict], names: list[str]) -> dict[str, dict]:
    """Number of images and mean IoU by kind of image, the most common kind first."""
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        kinds.setdefault(row.get("kind", ""), []).append(row)
    ordered = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    return {
        kind: {"num_images": len(group)}
        | {name: {"iou_image": float(np.mean([row[f"iou_{name}"] for row in group]))} for name in names}
        for kind, group in ordered
    }


def _engines(metrics: dict) -> dict[str, list[dict]]:
    """By depth, a row for each engine; for earlier reports the runtimes, which were scored on test only."""
    rows = (metrics.get("engines") or {}).get("rows") or [
        row
        | {"engine": row["runtime"] + ("-int8" if row.get("precision") == "int8" else "")}
        | {"test_iou_image": row.get("iou_image"), "test_difference_iou": row.get("difference_iou")}
        | {"within": row.get("offered")}
        for row in metrics.get("runtimes") or []
    ]
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["depth"], []).append(row)
    return found


def _gates(gates: dict[str, list[dict]], chosen: str | None) -> list[dict]:
    """A row for each gate: its explanation, its limit, and the value of each depth."""
    found: dict[str, dict] = {}
    for name, each in gates.items():
        for gate in each:
            row = found.setdefault(gate["name"], gate | {"depths": {}})
            row["depths"][name] = gate
            if name == chosen:
                row["what"] = gate["what"]
    return list(found.values())
