"""Models by address, such as `models:/NAME@ALIAS`: entry points of what is installed beside this package read them."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from unetpp.errors import UserError, to_install

# Groups of entry points by the scheme of a URI; `unetpp[pipelines]` brings those of MLflow's registry.
LOADERS = "unetpp.loaders"  # to a `Trained`
FOLDERS = "unetpp.folders"  # to a folder that is there until the process ends: weights, exports, engines.json


def is_address(text: str) -> bool:
    """Whether it is a URI and no path."""
    scheme, mark, _ = text.partition(":/")
    return bool(mark) and len(scheme) > 1  # one letter is a drive of Windows


def resolve(text: str, group: str) -> Any:
    """What the entry point of a group makes of a URI.

    Raises:
        UserError: a URI that nothing installed reads; and what the entry point raises.
    """
    scheme = text.partition(":/")[0]
    for found in entry_points(group=group, name=scheme):
        try:
            read: Callable[[str], Any] = found.load()
            return read(text)
        except ModuleNotFoundError as error:
            raise UserError(f"{text}: {error.name} is not installed: {to_install('pipelines')}") from None
    raise UserError(f"{text}: nothing installed reads {scheme}:/ ; for models:/ {to_install('pipelines')}")
