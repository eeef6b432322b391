"""Nothing here calls home: the one place that turns off telemetry and version checks of dependencies.

DVC's own commands never import this; `.dvc/config` says the same to them.
"""

import os

TELEMETRY_OFF = {
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def silence() -> None:
    """Set the switches, before any of the libraries is imported. A value that the user has set stands."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
