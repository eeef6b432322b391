"""The study's results on disk: a table for each set and recipe, a line of JSON for each training."""

import json
from pathlib import Path
from typing import NamedTuple

from pipelines.core.files import replacing
from pipelines.core.temporary_folders import locked

RESULTS = Path(__file__).parent / "results"
TEST = ("id", "kind", "height", "width")


class Run(NamedTuple):
    """One training within a set and recipe."""

    scale: str
    network: str
    seed: int


def table_of(name: str, recipe: str) -> Path:
    return RESULTS / f"{name}-{recipe}.jsonl"


def test_of(name: str) -> Path:
    """The table of a set's test images, in the order of every list of their scores."""
    return RESULTS / f"{name}-test.csv"


def read(name: str, recipe: str) -> dict[Run, dict]:
    """What was found in each run of a table, as `run.measure` returns it; nothing where there is no table."""
    path = table_of(name, recipe)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {Run(*found.pop("run")): found for found in map(json.loads, lines)}


def add(name: str, recipe: str, run: Run, found: dict) -> None:
    """Put a run into its table, whole or not at all; several processes may add to it."""
    path = table_of(name, recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        runs = read(name, recipe) | {run: found}
        lines = [json.dumps({"run": one, **runs[one]}, separators=(",", ":")) for one in sorted(runs)]
        with replacing(path) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
