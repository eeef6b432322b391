"""What `mlflow models serve` and `mlflow.pyfunc.load_model` run for a registered version.

A registered model holds weights and numbers, and no code: its MLmodel file names this package of the installation.
Forms of requests and answers: docs/serving.md.
"""

from pathlib import Path

from pipelines.core.checksums import check_seal
from pipelines.served.answers import Served
from unetpp.engines.family import find_family


def _load_pyfunc(path: str) -> Served:
    """What MLflow calls with the folder of a model; its bytes are checked first."""
    check_seal(Path(path))
    served = Served(find_family(path))
    if not served.family.measured:  # else the fastest is found at the first image, which takes seconds
        served.engine(served.about.depth)
    return served
