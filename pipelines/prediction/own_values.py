"""Class indices back to the values or colours that the masks of the set have, as `prepare.values` names them."""

import numpy as np

from unetpp.errors import UserError
from unetpp.models.about import About


def own_values(about: About) -> list[int | tuple[int, int, int]]:
    """The value, or the colour, of each number that a mask can hold.

    Raises:
        UserError: the model does not say them, or its labels lie over each other.
    """
    values = about.info.get("values")
    if not values or about.multilabel:
        found = "labels, which may lie over each other" if about.multilabel else "a model that does not say its values"
        raise UserError(
            f"--save values: found {found}; expected one that was trained with prepare.values by this version: train "
            "it again, or take --save mask"
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
    """A mask (H, W) of class indices as the set has it: (H, W) uint8 or uint16, or (H, W, 3) uint8 of colours."""
    table = np.array(own_values(about))
    return table.astype(np.uint8 if table.max() < 256 else np.uint16)[mask]


def _parse(value: int | str) -> int | tuple[int, int, int]:
    if str(value).isdecimal():  # JSON has no other keys than text
        return int(value)
    red, green, blue = bytes.fromhex(str(value)[1:])
    return red, green, blue
