"""Nothing here calls home: the one place that turns off telemetry and version checks of dependencies.

Our own commands and their workers call `silence`; `import unetpp` alone changes nothing for its host. DVC's own
commands never import this; `.dvc/config` says the same to them.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def openvino_silenced() -> Iterator[None]:
    """For the import of openvino, which sends an event unless a file in the home declines.

    Without the package that sends, openvino falls back to a stub of its own for good. None in the table of modules
    makes that package's import fail as if it were not installed; afterwards the table is as it was.
    """
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = cast(ModuleType, None)
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
