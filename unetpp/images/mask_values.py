"""The meaning of values or colours in mask files: `prepare.values`, a table from stored values to class indices."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view as windows

from unetpp.errors import FileError
from unetpp.images.decode import mask_colours, mask_values
from unetpp.images.pictures import Picture

# JPEG at quality 75 changes pixels inside an area by less; a pixel on an edge may be anywhere between two colours.
NEAR = 48  # of 255, in every channel
LISTED = 4  # values named in a message
EDGE = 5  # px: where compression blurs an edge, it is narrower


@dataclass(frozen=True)
class Meanings:
    """Stored values, sorted, and the meaning of each in a mask of `unetpp.network.masks`."""

    stored: np.ndarray  # (n,) int64; colours are 0xRRGGBB
    classes: np.ndarray  # (n,) uint8
    colours: bool
    unknown: int  # means that nothing is known of a pixel, such as one on an edge that compression has blurred

    def read(self, picture: Picture, threshold: int | None = None) -> np.ndarray:
        """The meaning of the values of a mask file, (H, W) uint8.

        Args:
            threshold: values from it on are read as 255, and those below as 0.

        Raises:
            FileError: as `mask_values` and `mask_colours`, and for an unknown value.
        """
        values = mask_colours(picture) if self.colours else mask_values(picture, lossy=True, named=True)
        if threshold is not None:
            values = np.where(values >= threshold, 255, 0)
        at = np.searchsorted(self.stored, values).clip(max=len(self.stored) - 1)
        strange = self.stored[at] != values
        if not strange.any():
            return self.classes[at]
        if not picture.lossy:
            self._refuse(picture, values[strange])
        at[strange], far = self._nearest(values[strange])
        stray = np.zeros(values.shape, bool)
        stray[strange] = far
        if windows(stray, [min(EDGE, side) for side in stray.shape]).all(axis=(2, 3)).any():
            raise FileError(
                picture.path,
                f"found a {picture.header.format} mask with {stray.sum():,} stray pixels, more than {NEAR} of 255 from "
                "every entry of prepare.values, in whole areas; expected values that compression leaves near them",
                "name their colour or value, too, or set prepare.mask_threshold if bright is foreground",
            )
        return np.where(stray, self.unknown, self.classes[at]).astype(np.uint8)

    def _nearest(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entry nearest to each of (n,) values, and (n,) whether it is far from it."""
        found, counts = np.unique(values, return_inverse=True)
        channels = [
            [one >> shift & 255 for shift in (16, 8, 0)] if self.colours else [one] for one in (found, self.stored)
        ]
        distance = np.max([np.abs(a[:, None] - b[None]) for a, b in zip(*channels, strict=True)], axis=0)
        far = distance.min(axis=1) > NEAR
        return distance.argmin(axis=1)[counts], far[counts]

    def _refuse(self, picture: Picture, values: np.ndarray) -> None:
        found, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:LISTED]
        what = ", ".join(f"{self._say(found.item(at))} in {counts[at]:,} pixels" for at in order)
        more = f" and {len(found) - LISTED} others" if len(found) > LISTED else ""
        known = ", ".join(map(self._say, self.stored[: 4 * LISTED].tolist())) + (
            " ..." if len(self.stored) > 4 * LISTED else ""
        )
        kind = "colour" if self.colours else "value"
        raise FileError(
            picture.path,
            f"found the mask {kind} {what}{more}; expected the entries of prepare.values: {known}",
            f"add {self._say(found.item(order[0]))} to prepare.values as a class, background or ignore",
        )

    def _say(self, stored: int) -> str:
        return f"'#{stored:06x}'" if self.colours else str(stored)
