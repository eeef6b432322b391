"""Nothing here calls home: the one place that turns off telemetry and version checks of dependencies.

DVC's own commands never import this; `.dvc/config` says the same to them.
"""

import os
import sys
from types import ModuleType
from typing import cast

TELEMETRY_OFF = {
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime sends events by HTTPS, and keeps an identifier in the home
    "RAY_USAGE_STATS_ENABLED": "0",
}


def silence() -> None:
    """Set the switches, before any of the libraries is imported. A value that the user has set stands."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    # `import openvino` sends an event unless a file in the home declines; without this package it falls back to a
    # stub of its own. None in this table makes its import fail as if it were not installed.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
