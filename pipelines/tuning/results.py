"""What a search leaves: a point for every trial and depth, tables of them, and the architecture that it chose."""

from pathlib import Path
from typing import Any

import torch
import yaml

from pipelines.core.files import replacing
from pipelines.core.tables import write_rows
from pipelines.tuning.candidate_costs import Costs, key_of
from pipelines.tuning.pareto import Point, Trial, name
from pipelines.tuning.space import Space, make_candidate
from unetpp.files import sha256

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
    """search.csv with a row a trial and depth, curves.csv with a row a trial, epoch and depth."""
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


def write_architecture(out: Path, chosen: Point, reason: str, others: list[str], weights: dict | None) -> None:
    """architecture.yaml, in which the reason and the runners-up are comments, and the weights beside it."""
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
        text = "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(
            values, default_flow_style=None, sort_keys=False
        )
        (folder / "architecture.yaml").write_text(text, encoding="utf-8")
