"""The kind of each image: a class within the dataset, by which splits are balanced and scores are reported.

prepare.kinds says where it comes from: none, looks or microscopy (the image itself), folder (the first one of the id),
or a CSV file with the columns id and kind. Without kinds every image has the empty one, and no kinds are reported.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipelines.dataset.groups import look_up
from pipelines.dataset.layouts import Sample
from pipelines.storage.naming.templates import SPLIT_OF
from unetpp.data.scaling import find_limits
from unetpp.errors import UserError

# In 547 images of BBBC038 the darkest bright-field or stained one has a median brightness of 0.52 and the
# brightest fluorescence one 0.2; the palest stain has a mean chroma of 0.047, and grey images have 0.
DARK = 0.35
COLOURED = 0.03

NO_FOLDER = "no folder"
BY_IMAGE = ("looks", "microscopy")
MICROSCOPY = {"dark grey": "fluorescence", "dark colour": "fluorescence", "bright colour": "tissue"}
MICROSCOPY |= {"bright grey": "bright-field"}


def find_kinds(samples: Sequence[Sample], how: str) -> list[str] | None:
    """The kind of each sample by prepare.kinds; None if `find_kind` derives it from the image.

    Raises:
        UserError: no id has a folder, the table does not exist, or ids are not in it.
    """
    if how in BY_IMAGE:
        return None
    if how == "none":
        return [""] * len(samples)
    if how != "folder":
        expected = "prepare.kinds, which is none, looks, microscopy, folder or such a path"
        return look_up(samples, Path(how), "kind", expected)
    kinds = [_first_folder(sample.id) for sample in samples]
    if samples and not any(kinds):
        raise UserError(
            f"prepare.kinds: found folder, but no id has one, such as {samples[0].id!r}; expected images in a folder "
            "for each kind: set prepare.kinds to none, or to the path of a CSV file with the columns id and kind"
        )
    return [kind or NO_FOLDER for kind in kinds]


def _first_folder(id: str) -> str:
    """Folders that name a split do not count."""
    folders = id.split("/")[:-1]
    return next((folder for folder in folders if folder.lower() not in SPLIT_OF), "")


def find_kind(image: np.ndarray, how: str = "microscopy") -> str:
    """The kind of an image by its looks, a function of only the decoded image (H, W, C) uint8, uint16 or float32.

    "dark": the median brightness (mean of the channels) is below 0.35 of the image's own bright end for uint16 (for
    floats, above their minimum), of the full scale for uint8; else "bright". "colour": the mean chroma (largest
    less smallest channel) is above 0.03; else "grey".

    Args:
        how: "looks", or "microscopy", which calls dark images fluorescence, and the rest tissue or bright-field.
    """
    pixels = image.astype(np.float32)
    if image.dtype == np.float32:
        low, high = find_limits(image)
        pixels = ((image.astype(np.float64) - low) * (65535 / (high - low or 1.0))).astype(np.float32)
    # Cameras of 12 and 14 bits fill the lower end of 16: there, full scale does not tell bright from dark.
    pixels /= 255 if image.dtype == np.uint8 else max(1.0, float(np.percentile(pixels, 99.5)))
    channels = cv2.split(pixels)  # NumPy is slow along a short axis
    light = "dark" if np.median(sum(channels) / len(channels)) < DARK else "bright"
    largest = smallest = channels[0]
    for channel in channels[1:]:
        largest, smallest = np.maximum(largest, channel), np.minimum(smallest, channel)
    look = f"{light} {'colour' if (largest - smallest).mean() > COLOURED else 'grey'}"
    return look if how == "looks" else MICROSCOPY[look]
