"""Models by address, such as `models:/NAME@ALIAS`, which entry points of installed packages read."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from unetpp.errors import UserError, to_install

# Groups of entry points, named by URI scheme; `unetpp[pipelines]` provides those of MLflow's registry.
LOADERS = "unetpp.loaders"  # return a `Trained`
FOLDERS = "unetpp.folders"  # return a folder that exists until the process ends: weights, exports, engines.json


def is_address(text: str) -> bool:
    """Whether a text is a URI, not a path."""
    scheme, mark, _ = text.partition(":/")
    return bool(mark) and len(scheme) > 1  # a single letter is a Windows drive


def resolve(text: str, group: str) -> Any:
    """Resolve a URI with the entry point of a group.

    Raises:
        UserError: no installed package reads this URI, or an error of the entry point.
    """
    scheme = text.partition(":/")[0]
    for found in entry_points(group=group, name=scheme):
        try:
            read: Callable[[str], Any] = found.load()
            return read(text)
        except ModuleNotFoundError as error:
            raise UserError(f"{text}: {error.name} is not installed: {to_install('pipelines')}") from None
    raise UserError(f"{text}: no installed package reads {scheme}:/ ; for models:/ {to_install('pipelines')}")
