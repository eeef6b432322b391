"""Test-time augmentation: the mean of the probabilities of an image and its mirrored and rotated copies."""

from typing import Literal

import numpy as np

from unetpp.engines.engine import Engine

Symmetries = Literal["none", "flips", "all"]
# Number of quarter turns, and whether the image is mirrored left to right first.
COPIES: dict[Symmetries, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "all": tuple((turns, mirrored) for turns in range(4) for mirrored in (False, True)),
}


class Symmetric:
    """An engine that averages over copies of each image, each transformed back exactly.

    Args:
        symmetries: "flips": unchanged, mirrored in either direction and in both; "all": also their quarter turns.
    """

    def __init__(self, engine: Engine, symmetries: Symmetries):
        self.engine: Engine = engine
        self.symmetries: Symmetries = symmetries
        self.name = engine.name if symmetries == "none" else f"{engine.name}, {symmetries}"
        self.about, self.takes_parts = engine.about, engine.takes_parts

    def __call__(self, images: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray:
        total = None
        for turns, mirrored in COPIES[self.symmetries]:
            copy = np.rot90(images[..., ::-1] if mirrored else images, turns, axes=(-2, -1))
            found = np.rot90(self.engine(np.ascontiguousarray(copy), statistics), -turns, axes=(-2, -1))
            found = found[..., ::-1] if mirrored else found
            total = found.copy() if total is None else total + found
        assert total is not None
        return total / np.float32(len(COPIES[self.symmetries]))
