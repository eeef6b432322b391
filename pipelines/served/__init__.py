"""The code that `mlflow models serve` and `mlflow.pyfunc.load_model` run for a registered version.

A registered model contains weights and numbers but no code: its MLmodel file names this package, which must be
installed. Formats of requests and answers: docs/serving.md.
"""

from pathlib import Path

from pipelines.core.checksums import check_seal
from pipelines.served.answers import Served
from unetpp.engines.family import find_family


def _load_pyfunc(path: str) -> Served:
    """Load a model; MLflow calls this with its folder. The files are checked against their sums first."""
    check_seal(Path(path))
    served = Served(find_family(path))
    if not served.family.measured:  # else the engines are timed at the first image, which takes seconds
        served.engine(served.about.depth)
    return served
