"""UNet++ in plain torch: the nested network, its pruning, losses, metrics, training loop and inference.

`import unetpp` is cheap: each name is imported from its file when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

from unetpp.offline import silence

if TYPE_CHECKING:
    from unetpp.errors import UserError
    from unetpp.inference.segmenter import Segmenter
    from unetpp.network.model import NestedUNet
    from unetpp.network.pruning import from_classic, prune

silence()

_HOMES = {
    "NestedUNet": "unetpp.network.model",
    "Segmenter": "unetpp.inference.segmenter",
    "UserError": "unetpp.errors",
    "from_classic": "unetpp.network.pruning",
    "prune": "unetpp.network.pruning",
}
__all__ = ["NestedUNet", "Segmenter", "UserError", "from_classic", "prune"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'unetpp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
