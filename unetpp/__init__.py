"""UNet++ in plain torch: the nested network, its pruning, losses, metrics, training loop and inference.

    predictor = unetpp.Predictor(unetpp.load("models/train"), depth=2)
    mask = predictor.mask(image)

`import unetpp` is cheap and has no side effects: each name is imported from its module when it is first used.
`Segmenter`, the module that `Predictor` wraps, will no longer be public in the next release.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unetpp.engines.family import Family, find_family
    from unetpp.errors import UserError
    from unetpp.inference.overlay import overlay
    from unetpp.inference.predictor import Predictor
    from unetpp.models.loading import load
    from unetpp.models.model_file import Trained, load_model
    from unetpp.models.segmenter import Segmenter
    from unetpp.network.model import NestedUNet
    from unetpp.network.pruning import from_classic, prune, transfer
    from unetpp.training.fit import Epoch, fit

    __version__: str

_HOMES = {
    "Epoch": "unetpp.training.fit",
    "Family": "unetpp.engines.family",
    "NestedUNet": "unetpp.network.model",
    "Predictor": "unetpp.inference.predictor",
    "Segmenter": "unetpp.models.segmenter",
    "Trained": "unetpp.models.model_file",
    "UserError": "unetpp.errors",
    "find_family": "unetpp.engines.family",
    "fit": "unetpp.training.fit",
    "from_classic": "unetpp.network.pruning",
    "load": "unetpp.models.loading",
    "load_model": "unetpp.models.model_file",
    "overlay": "unetpp.inference.overlay",
    "prune": "unetpp.network.pruning",
    "transfer": "unetpp.network.pruning",
}
__all__ = [
    "Epoch",
    "Family",
    "NestedUNet",
    "Predictor",
    "Segmenter",
    "Trained",
    "UserError",
    "__version__",
    "find_family",
    "fit",
    "from_classic",
    "load",
    "load_model",
    "overlay",
    "prune",
    "transfer",
]


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("unetpp")
    if name not in _HOMES:
        raise AttributeError(f"module 'unetpp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
