"""The pictures of the depth report: each image once, and for every depth thin layers that the page lays over it.

A layer is a PNG with a few colours, some hundred bytes, and an outline is a path. So one page contains two dozen images
with the errors and the masks of every depth, and composes them itself: the viewer with its script, and the rows below
it, which can be printed, without a script.
"""

from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pipelines.pages.html_page import data_uri, indexed_uri, outline_path
from unetpp.errors import UserError, said
from unetpp.images.display import (
    CODES,
    ERRORS,
    FILL,
    RGBA,
    class_colour,
    display,
    error_map,
    outline,
    stripe,
)
from unetpp.network.masks import IGNORE, find_classes

SIDE_PX = 320  # larger images are shown in fewer pixels
JPEG_PX = 160  # beyond this side, a photograph as PNG is too large for a page of many
NUM_COLOURS = 127  # of objects, next ones far apart (`display.class_colour`); twice as many fit a PNG of bytes
PATH_BYTES = 16_000  # of an outline; if it needs more, the mask is shown filled


@dataclass(frozen=True)
class Sample:
    """One test image to show: its rank among all, its row of images.csv, and the masks of every depth."""

    rank: str | None  # best, median, worst, or None for one in between
    row: dict
    image: np.ndarray  # (H, W, C) uint8, uint16 or float32
    mask: np.ndarray  # (H, W)
    masks_hat: dict[str, np.ndarray]  # (H, W) by name
    objects: np.ndarray | None = None  # (H, W) numbers of the true objects, if the network separates objects
    objects_hat: dict[str, np.ndarray] = field(default_factory=dict)  # (H, W) by name


def read_samples(path: Path, facts: dict) -> list[Sample]:
    """The images of shown.npz.

    Args:
        facts: what page.json holds.

    Raises:
        UserError: it is missing, unreadable, or does not belong to that page.json.
    """
    try:
        names, rows = facts["report"]["depths"], facts["rows"]
        with np.load(path, allow_pickle=False) as shown:
            return [
                Sample(
                    one["rank"],
                    rows[index],
                    shown[f"{index}/image"],
                    shown[f"{index}/mask"],
                    {name: shown[f"{index}/{name}"] for name in names},
                    shown.get(f"{index}/objects"),
                    {name: shown[key] for name in names if (key := f"{index}/{name}/objects") in shown},
                )
                for one in facts["samples"]
                for index in (one["row"],)
            ]
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}: does not match page.json ({said(error)}); run `dvc repro evaluate`") from None


def picture(sample: Sample, names: list[str], multilabel: bool = False, background: bool = True) -> dict:
    """A sample as the template needs it: the parts drawn once, and the layers and counts of each name."""
    step = -(-max(sample.mask.shape) // SIDE_PX)
    mask = sample.mask[::step, ::step]
    base = display(sample.image[::step, ::step])  # (H, W, 3)
    layers = {}
    for name in names:
        mask_hat = sample.masks_hat[name]
        errors = error_map(sample.mask, mask_hat, sample.mask != IGNORE, background)
        layers[name] = {
            "iou": sample.row.get(f"iou_{name}"),
            "errors": indexed_uri(stripe(errors[::step, ::step]), tuple(ERRORS.values())),
            "mask": mask_layers(mask_hat[::step, ::step], multilabel, background),
            "objects": _objects(sample.objects_hat.get(name), step),
            "ap": sample.row.get(f"ap_{name}"),
            "counts": {key: int(np.sum(errors == CODES[key])) for key in ("found", "extra", "missed", "confused")},
        }
    return {
        "rank": sample.rank,
        "row": sample.row,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "image": data_uri(base, "PNG" if max(mask.shape) <= JPEG_PX else "JPEG"),
        "truth": mask_layers(mask, multilabel, background),
        "objects": _objects(sample.objects, step),
        "outline": truth_outline(mask),
        "layers": layers,
    }


def mask_layers(mask: np.ndarray, multilabel: bool, background: bool, opacity: float = FILL) -> tuple[str, str]:
    """A mask in the colours of its classes, mixed where labels overlap: filled, and as outlines."""
    values, indices = np.unique(mask, return_inverse=True)
    colours: list[RGBA] = []
    for value in values.astype(np.uint8):
        numbers = [number for number, _ in find_classes(np.full((1, 1), value), multilabel, background)]
        mixed = np.mean([class_colour(number) for number in numbers], axis=0).round() if numbers else np.zeros(3)
        shown = (*mixed.astype(int).tolist(), round(255 * opacity) if numbers else 0)
        colours.append(ERRORS["ignored"] if value == IGNORE else shown)
    indices = indices.reshape(mask.shape).astype(np.uint8)
    edges = np.where(outline(mask), indices + 1, 0).astype(np.uint8)
    opaque = [(*colour[:3], 255 if colour[3] else 0) for colour in colours]
    return indexed_uri(indices, tuple(colours)), indexed_uri(edges, ((0, 0, 0, 0), *opaque))


def _objects(numbers: np.ndarray | None, step: int) -> dict | None:
    """How many objects there are, and each in a colour of its own, with a rim."""
    if numbers is None:
        return None
    shown = numbers[::step, ::step]
    num = min(NUM_COLOURS, int(shown.max(initial=1)))
    colours = (shown - 1) % num + 1 + num * outline(shown)
    palette = [(*class_colour(one), alpha) for alpha in (round(255 * FILL), 255) for one in range(num)]
    layer = indexed_uri(np.where(shown > 0, colours, 0).astype(np.uint8), ((0, 0, 0, 0), *palette))
    return {"num": len(np.unique(numbers[numbers > 0])), "layer": layer}


def truth_outline(mask: np.ndarray) -> str | None:
    """The edges of a true mask and of its classes as the `d` of an SVG path; None if they are too fine."""
    values = [value for value in np.unique(mask) if value not in (0, IGNORE)]
    path = outline_path((mask > 0) & (mask != IGNORE))
    if len(values) > 1:  # edges between classes
        path += "".join(outline_path(mask == value) for value in values)
    return path if len(path) <= PATH_BYTES else None
