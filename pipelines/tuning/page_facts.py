"""What the page of a search shows, as plain values: the page itself is made from them without the search."""

from typing import Any

from pipelines.core.numbers import say
from pipelines.tuning.pareto import SHOWN, Point, Trial, importance, measured, name
from pipelines.tuning.space import Space
from unetpp.data.manifest import Manifest


def page_facts(
    points: list[Point],
    trials: list[Trial],
    chosen: Point,
    reason: str,
    others: list[str],
    space: Space,
    manifest: Manifest,
    size_px: int,
) -> dict[str, Any]:
    """What page.json holds."""
    search = space.params.search
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
        "search": search.model_dump(mode="json"),
        "searched": space.searched,
        "cost": SHOWN[search.cost],
        "size_px": size_px,
        "num_val": manifest.splits["val"].num_images,
        "provenance": {f"{key}.arrow, sha256": manifest.splits[key].sha256 for key in ("train", "val")},
    }


def _name(config: dict[str, Any]) -> str:
    others = [f"{key} {say(value)}" for key, value in config.items() if key != "widths"]
    return ", ".join([" ".join(map(str, config["widths"])), *others])
