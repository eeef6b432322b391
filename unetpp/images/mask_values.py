"""The meaning of values or colours in mask files: `prepare.values`, a table from stored values to class indices."""

from dataclasses import dataclass

import numpy as np

from unetpp.errors import FileError
from unetpp.images.decode import mask_colours, mask_values
from unetpp.images.pictures import Picture

# JPEG at quality 75 changes pixels inside an area by less; a pixel on an edge may be anywhere between two colours.
NEAR = 48  # of 255, in every channel
LISTED = 4  # values named in a message


@dataclass(frozen=True)
class Meanings:
    """Stored values, sorted, and the meaning of each in a mask of `unetpp.network.masks`."""

    stored: np.ndarray  # (n,) int64; colours are 0xRRGGBB
    classes: np.ndarray  # (n,) uint8
    colours: bool

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
        if far:
            raise FileError(
                picture.path,
                f"found a {picture.header.format} mask with {far:,} stray pixels, more than {NEAR} of 255 from every "
                "entry of prepare.values; expected values that compression leaves near them",
                "export the mask again as PNG, or set prepare.mask_threshold if bright is foreground",
            )
        return self.classes[at]

    def _nearest(self, values: np.ndarray) -> tuple[np.ndarray, int]:
        """The entry nearest to each of (n,) values, and how many are not near any."""
        found, counts = np.unique(values, return_inverse=True)
        channels = [
            [one >> shift & 255 for shift in (16, 8, 0)] if self.colours else [one] for one in (found, self.stored)
        ]
        distance = np.max([np.abs(a[:, None] - b[None]) for a, b in zip(*channels, strict=True)], axis=0)
        far = distance.min(axis=1) > NEAR
        return distance.argmin(axis=1)[counts], int(far[counts].sum())

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
