"""Class indices back to the values or colours of the dataset's own masks, as `prepare.values` names them."""

import numpy as np

from unetpp.errors import UserError
from unetpp.models.about import About


def own_values(about: About) -> list[int | tuple[int, int, int]]:
    """The value or RGB colour of each class index, from 0 on.

    Raises:
        UserError: the model does not know the values, or has labels, which may overlap.
    """
    values = about.info.get("values")
    if not values or about.multilabel:
        found = "a model with labels, which may overlap" if about.multilabel else "a model without values"
        raise UserError(
            f"--save values: found {found}; expected a model that this version trained with prepare.values: retrain "
            "it, or use --save mask"
        )
    stored: dict[str, int | str] = {}
    for value, name in values.items():
        stored.setdefault(name, value)
    if about.num_classes == 1:  # foreground, whatever it is called
        foreground = next(value for name, value in stored.items() if name not in ("background", "ignore"))
        return [_parse(stored.get("background", 0 if str(foreground)[0] != "#" else "#000000")), _parse(foreground)]
    default = "#000000" if str(next(iter(values)))[0] == "#" else 0
    return [_parse(stored.get(name, default)) for name in about.names]


def to_own_values(mask: np.ndarray, about: About) -> np.ndarray:
    """Map class indices (H, W) to the dataset's values, (H, W) uint8 or uint16, or to its colours, (H, W, 3) uint8."""
    table = np.array(own_values(about))
    return table.astype(np.uint8 if table.max() < 256 else np.uint16)[mask]


def _parse(value: int | str) -> int | tuple[int, int, int]:
    if str(value).isdecimal():  # keys of JSON are always text
        return int(value)
    red, green, blue = bytes.fromhex(str(value)[1:])
    return red, green, blue
