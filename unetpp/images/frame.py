"""The size to which whole images are brought for a network, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Size = tuple[int, int]  # height, width, in px
Fit = Literal["stretch", "pad"]


def as_size(value: int | Sequence[int] | None) -> Size | None:
    """A size from params, manifests or model files, a side or [height, width], as (height, width)."""
    if value is None:
        return None
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def plain(value: int | Sequence[int] | None) -> int | list[int] | None:
    """The reverse of `as_size`: one number for a square."""
    size = as_size(value)
    if size is None:
        return None
    return size[0] if size[0] == size[1] else list(size)


def say_size(size: int | Sequence[int] | str) -> str:
    """A size as text, height first: "96 x 128"; text is returned unchanged."""
    if isinstance(size, str):
        return size
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width}"


@dataclass(frozen=True)
class Frame:
    """The size of whole images for the network.

    "stretch" resizes each image to exactly this size. "pad" keeps its proportions: it is scaled by one factor to the
    largest size that fits, and placed at the top left; its edge is repeated at the bottom and on the right, after it
    was standardised by its own pixels, and the padding counts nowhere.
    """

    size: Size
    fit: Fit = "stretch"

    @property
    def canvas(self) -> Size | None:
        """The padded size, if any."""
        return self.size if self.fit == "pad" else None

    def sides(self, shape: Sequence[int]) -> Size:
        """Height and width that an image of this shape is resized to, before padding."""
        if self.fit == "stretch":
            return self.size
        factor = min(most / side for most, side in zip(self.size, shape, strict=False))
        height, width = (min(most, max(1, round(side * factor))) for most, side in zip(self.size, shape, strict=False))
        return height, width


def frame_of(size: int | Sequence[int] | None, fit: Fit) -> Frame | None:
    """The frame of a manifest or a model file, if any."""
    sides = as_size(size)
    return Frame(sides, fit) if sides else None
