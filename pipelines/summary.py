"""`unetpp summary`: the last evaluation's decision, depth table and gates, and where to look."""

import json
from pathlib import Path

from pipelines.evaluation.depth_table import describe
from unetpp.errors import UserError


def _read(path: Path, stage: str) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path}: no such file; `dvc repro {stage}` writes it") from None


def summary(reports: Path) -> str:
    """What `make demo` ends with.

    Raises:
        UserError: the pipeline has not run.
    """
    metrics = _read(reports / "evaluate" / "report.json", "evaluate")
    versions = _read(reports / "register" / "versions.json", "register")
    registered = ", ".join(f"{depth} is version {version}" for depth, version in versions["versions"].items())
    return "\n".join(
        (
            "",
            describe(metrics),
            "",
            f"report:    {(reports / 'evaluate' / 'report.html').absolute()}",
            f"registry:  {versions['model_name']}: {registered}",
            "page:      make mlflow",
        )
    )
