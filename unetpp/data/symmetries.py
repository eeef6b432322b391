"""Flips and quarter turns: the symmetries of the square that augmentation draws from."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Flips = Literal["none", "horizontal", "vertical", "all"]
Symmetry = tuple[int, int, int]  # whether to transpose, then to flip the rows, then the columns
# In the order of albumentations, so that draws stay those of earlier versions.
SYMMETRIES: tuple[Symmetry, ...] = (
    (0, 0, 0),
    (1, 1, 0),
    (0, 1, 1),
    (1, 0, 1),
    (0, 1, 0),
    (1, 1, 1),
    (0, 0, 1),
    (1, 0, 0),
)


def find_group(flips: Flips, quarter_turns: bool) -> tuple[Symmetry, ...]:
    """The group that these generate, identity first: quarter turns with any flip generate all eight."""
    if quarter_turns:
        return tuple(one for one in SYMMETRIES if flips != "none" or sum(one) % 2 == 0)
    rows, columns = flips in ("vertical", "all"), flips in ("horizontal", "all")
    return tuple(one for one in SYMMETRIES if one[0] == 0 and one[1] <= rows and one[2] <= columns)


def group_of(augment: Mapping[str, Any]) -> tuple[Symmetry, ...]:
    """`find_group` for the section augment in a model file; older files only say whether all eight were used."""
    flips = augment.get("flips", True)
    if isinstance(flips, bool):
        return find_group("all" if flips else "none", flips)
    return find_group(flips, augment["quarter_turns"])


def draw_symmetry(group: tuple[Symmetry, ...], seed: int) -> Symmetry:
    """Draw a symmetry of a group, all with the same probability."""
    return group[int(np.random.default_rng(seed).integers(len(group)))]


def move(pixels: np.ndarray, symmetry: Symmetry) -> np.ndarray:
    """Pixels (H, W) or (H, W, C) of any type, moved; a view."""
    transposed, rows, columns = symmetry
    moved = pixels.swapaxes(0, 1) if transposed else pixels
    return moved[:: -1 if rows else 1, :: -1 if columns else 1]
