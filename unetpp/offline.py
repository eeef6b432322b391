"""Nothing here calls home: the one place that turns off telemetry and version checks of dependencies.

Our own commands and their workers call `silence`; in a host's process `silenced` is around what would call home, and
nothing else changes. DVC's own commands never import this; `.dvc/config` says the same to them.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast

TELEMETRY_OFF = {
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # the hub of timm's weights
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime sends events by HTTPS, and keeps an identifier in the home
    "RAY_USAGE_STATS_ENABLED": "0",
}


def silence() -> None:
    """Set the switches, before any of the libraries is imported. A value that the user has set stands."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)


@contextmanager
def silenced() -> Iterator[None]:
    """For the import and first use of a library within a host's process: afterwards the host's settings are as before.

    `import openvino` sends an event unless a file in the home declines. Without the package that sends it, openvino
    falls back to a stub of its own for good; None in the table of modules makes that package's import fail as if it
    were not installed.
    """
    missing = [name for name in TELEMETRY_OFF if name not in os.environ]
    sender = sys.modules.get("openvino_telemetry")
    silence()
    sys.modules["openvino_telemetry"] = cast(ModuleType, None)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
        del sys.modules["openvino_telemetry"]
        if sender is not None:
            sys.modules["openvino_telemetry"] = sender
