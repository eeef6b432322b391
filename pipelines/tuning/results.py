"""The outputs of a search: a point for every trial and depth, their tables and page, and the chosen architecture."""

from pathlib import Path
from typing import Any

import torch
import yaml

from pipelines.core.files import replacing
from pipelines.core.numbers import say
from pipelines.core.sections.search import Origin
from pipelines.core.tables import write_rows
from pipelines.tuning.candidate_costs import Costs, key_of
from pipelines.tuning.pareto import SHOWN, Point, Trial, importance, measured, name
from pipelines.tuning.space import Space, make_candidate
from unetpp.data.manifest import Manifest
from unetpp.files import sha256
from unetpp.images.frame import Size, plain

INIT = "init.pt"
COLUMNS = ("trial", "widths", "depth", "val_iou", "parameters", "macs", "latency_ms", "memory_mib")
COLUMNS += ("status", "reason", "seconds", "epochs", "on_front", "chosen")


def points_of(trials: list[Trial], space: Space, costs: Costs) -> list[Point]:
    """A point for each trial and depth."""
    points = []
    for trial in trials:
        searched = {key: trial.config[key] for key in space.searched if key in trial.config}
        shared = {"trial": trial.number, "widths": " ".join(map(str, trial.config["widths"])), "params": searched}
        for depth, cost in costs[key_of(make_candidate(space.params, trial.config))].items():
            points.append(
                shared
                | {"depth": depth, "val_iou": trial.best.get(depth), "latency_ms": None, "memory_mib": None}
                | cost
                | {"status": trial.status, "reason": trial.reason, "seconds": round(trial.seconds, 1)}
                | {"epochs": len(trial.curve), "on_front": 0, "chosen": 0}
            )
    return points


def write_tables(points: list[Point], trials: list[Trial], space: Space, reports: Path) -> None:
    """search.csv with a row per trial and depth, curves.csv with a row per trial, epoch and depth."""
    rows = []
    for point in points:
        iou = {} if point["val_iou"] is None else {"val_iou": f"{point['val_iou']:.6f}"}
        rows.append(point | iou | point["params"])
    write_rows(reports / "search.csv", [*COLUMNS, *space.searched], rows)
    curves = [
        (trial.number, int(row["epoch"]), depth, f"{row[f'val_iou_{depth}']:.6f}")
        for trial in trials
        for row in trial.curve
        for depth in trial.best
    ]
    write_rows(reports / "curves.csv", ("trial", "epoch", "depth", "val_iou"), curves)


def page_facts(
    points: list[Point],
    trials: list[Trial],
    chosen: Point,
    reason: str,
    others: list[str],
    space: Space,
    manifest: Manifest,
    size: Size,
) -> dict[str, Any]:
    """The contents of page.json, from which the page is made without the search."""
    there = measured(points)
    return {
        "points": [point | {"measured": point in there} for point in points],
        "trials": [
            {"number": trial.number, "name": _name(trial.config), "status": trial.status, "reason": trial.reason}
            | {"seconds": trial.seconds, "curve": trial.curve, "best": trial.best}
            for trial in trials
        ],
        "chosen": points.index(chosen),
        "chosen_name": name(chosen),
        "reason": reason,
        "others": others,
        "importance": importance(points),
        "search": space.params.search.model_dump(mode="json"),
        "searched": space.searched,
        "cost": SHOWN[space.params.search.cost],
        "size_px": plain(size),
        "num_val": manifest.splits["val"].num_images,
        "provenance": {f"{key}.arrow, sha256": manifest.splits[key].sha256 for key in ("train", "val")},
    }


def _name(config: dict[str, Any]) -> str:
    others = [f"{key} {say(value)}" for key, value in config.items() if key != "widths"]
    return ", ".join([" ".join(map(str, config["widths"])), *others])


def write_architecture(
    out: Path, chosen: Point, reason: str, others: list[str], weights: dict | None, origin: Origin | None = None
) -> None:
    """architecture.yaml, in which the reason and the runners-up are comments, and the weights next to it."""
    depth = int(chosen["depth"][1:])
    widths = [int(width) for width in chosen["widths"].split()]
    lines = [f"chosen: {name(chosen)}: {reason}"]
    if depth < len(widths) - 1:
        lines.append(
            f"Train takes the whole widths and not the first {depth + 1}: the accuracy of {chosen['depth']} was "
            "measured inside this network, and evaluate and register cut every depth out of it."
        )
    lines += [f"runner-up: {other}" for other in others]
    values: dict[str, Any] = {"widths": widths, "params": chosen["params"]}
    with replacing(out) as folder:
        folder.mkdir()
        if weights is not None:
            torch.save(weights, folder / INIT)
            values |= {"init": INIT, "init_sha256": sha256(folder / INIT)}
        if origin is not None:
            values["init_origin"] = origin.model_dump()
        text = "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(
            values, default_flow_style=None, sort_keys=False
        )
        (folder / "architecture.yaml").write_text(text, encoding="utf-8")
