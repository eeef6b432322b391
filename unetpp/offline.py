"""Nothing calls home: this module turns off telemetry and version checks of dependencies.

Our own commands and their workers call `silence`. In a host's process, `silenced` wraps only the code that would call
home. DVC's own commands never import this module; `.dvc/config` does the same for them.
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
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime sends events by HTTPS, and keeps an identifier in the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
}


def silence() -> None:
    """Set the switches before any of the libraries is imported. Values that the user has set are kept."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)


@contextmanager
def silenced() -> Iterator[None]:
    """Silence the import and first use of a library in a host's process, then restore the host's settings.

    `import openvino` sends an event unless a file in the home folder declines. If the package that sends it cannot be
    imported, openvino uses its own stub permanently; None in `sys.modules` makes the import fail as if the package
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
