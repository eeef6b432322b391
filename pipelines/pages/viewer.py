"""The pictures of the depth report: each image once, and for every depth thin layers that the page lays over it.

A layer is a PNG of a few colours, some hundred bytes, and an outline is a path. So one page holds two dozen images
with the errors and the masks of every depth, and puts them together itself: the viewer by its script, the rows below
it, which stand on paper too, by none.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.pages.html_page import data_uri, indexed_uri, outline_path
from unetpp.images.display import display
from unetpp.network.masks import IGNORE

SIDE_PX = 320  # larger images are shown in fewer pixels
JPEG_PX = 160  # beyond this side a photograph as PNG is too many bytes for a page of many
PATH_BYTES = 16_000  # of an outline; a finer one is left out, and that is said

# Okabe and Ito's colours, told apart by colour-blind readers; what was missed is striped as well.
ERRORS = {
    "right": (0, 0, 0, 0),
    "found": (0, 114, 178, 120),
    "extra": (240, 228, 66, 200),
    "missed": (213, 94, 0, 245),
    "stripe": (213, 94, 0, 115),
    "confused": (204, 121, 167, 210),
    "ignored": (128, 128, 128, 150),
}
# Of the classes 1, 2, ... in masks; the last is for what nobody annotated.
CLASSES = (
    (0, 0, 0, 0),
    (86, 180, 233, 165),
    (230, 159, 0, 165),
    (204, 121, 167, 165),
    (0, 158, 115, 165),
    (240, 228, 66, 165),
    (213, 94, 0, 165),
    (128, 128, 128, 150),
)
NUM_COLOURS = len(CLASSES) - 2


@dataclass(frozen=True)
class Sample:
    """One test image to show: its rank among all, its row of images.csv, and the masks of every depth."""

    rank: str | None  # best, median, worst, or None for one in between
    row: dict
    image: np.ndarray  # (H, W, C) uint8, uint16 or float32
    mask: np.ndarray  # (H, W)
    masks_hat: dict[str, np.ndarray]  # (H, W) by name


def picture(sample: Sample, names: list[str]) -> dict:
    """A sample as the template needs it: what is drawn once, and the layers and counts of each name."""
    step = -(-max(sample.mask.shape) // SIDE_PX)
    mask = sample.mask[::step, ::step]
    base = display(sample.image[::step, ::step])  # (H, W, 3)
    path = outline_path((mask > 0) & (mask != IGNORE)) + _class_edges(mask)
    layers = {}
    for name in names:
        mask_hat = sample.masks_hat[name]
        errors = error_map(sample.mask, mask_hat)
        layers[name] = {
            "iou": sample.row.get(f"iou_{name}"),
            "errors": indexed_uri(stripe(errors[::step, ::step]), tuple(ERRORS.values())),
            "mask": _mask_layer(mask_hat[::step, ::step]),
            "counts": {key: int(np.sum(errors == _CODES[key])) for key in ("found", "extra", "missed", "confused")},
        }
    return {
        "rank": sample.rank,
        "row": sample.row,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "image": data_uri(base, "PNG" if max(mask.shape) <= JPEG_PX else "JPEG"),
        "truth": _mask_layer(mask),
        "outline": path if len(path) <= PATH_BYTES else None,
        "layers": layers,
    }


_CODES = {name: code for code, name in enumerate(ERRORS)}


def error_map(mask: np.ndarray, mask_hat: np.ndarray) -> np.ndarray:
    """What a prediction made of each pixel of (H, W) masks, as indices into ERRORS, without stripes.

    Confused is foreground taken for other foreground: another class, or not the same labels.
    """
    known = mask != IGNORE
    cases = (
        (~known, "ignored"),
        ((mask > 0) & (mask_hat == mask), "found"),
        ((mask == 0) & (mask_hat > 0), "extra"),
        ((mask > 0) & (mask_hat == 0), "missed"),
        ((mask > 0) & (mask_hat > 0), "confused"),
    )
    chosen = np.select([where for where, _ in cases], [_CODES[name] for _, name in cases], _CODES["right"])
    return chosen.astype(np.uint8)


def stripe(errors: np.ndarray) -> np.ndarray:
    """Every other diagonal of what was missed in the paler colour."""
    rows, columns = np.indices(errors.shape)
    pale = (errors == _CODES["missed"]) & ((rows + columns) % 4 < 2)
    return np.where(pale, _CODES["stripe"], errors).astype(np.uint8)


def class_colour(value: int) -> str:
    """The colour of a class in masks, as CSS writes it; after the sixth they begin anew."""
    return "rgb({}, {}, {})".format(*CLASSES[1 + (value - 1) % NUM_COLOURS][:3])


def _mask_layer(mask: np.ndarray) -> str:
    cycled = 1 + (mask.astype(np.int64) - 1) % NUM_COLOURS
    indices = np.where(mask == IGNORE, len(CLASSES) - 1, np.where(mask == 0, 0, cycled))
    return indexed_uri(indices.astype(np.uint8), CLASSES)


def _class_edges(mask: np.ndarray) -> str:
    """Where one class touches another, beyond the edge between foreground and background."""
    values = [value for value in np.unique(mask) if value not in (0, IGNORE)]
    return "".join(outline_path(mask == value) for value in values) if len(values) > 1 else ""
