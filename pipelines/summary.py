"""`unetpp summary`: the last evaluation's decision, depth table and gates, and where to look."""

from pathlib import Path

from pipelines.core.files import read_results
from pipelines.evaluation.depth_table import describe


def summary(reports: Path) -> str:
    """What `make demo` ends with.

    Raises:
        UserError: the pipeline has not run.
    """
    metrics = read_results(reports / "evaluate" / "report.json", "evaluate", ("depths", "recommendation"))
    versions = read_results(reports / "register" / "versions.json", "register", ("versions", "model_name"))
    registered = ", ".join(f"{depth} is version {version}" for depth, version in versions["versions"].items())
    return "\n".join(
        (
            "",
            describe(metrics),
            "",
            f"report:    {(reports / 'evaluate' / 'report.html').absolute()}",
            f"registry:  {versions['model_name']}: {registered}",
            "page:      unetpp mlflow",
        )
    )
