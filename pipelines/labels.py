"""The labels of a sample: its mask files or its shapes brought to class indices, and what in them cannot be meant."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.coco import draw
from pipelines.layouts import Sample
from unetpp.errors import FileError
from unetpp.images import Limits, decode_image, decode_mask

# Share of neighbouring pixels that are equal. Of the 547 real pairs of DSB2018 no mask has less than 0.95, and no
# image more than 0.90 (a dim one with a background of zeros); half of the images have less than 0.40.
FLAT_AS_LABELS = 0.9
NOISY_AS_A_PICTURE = 0.75


class Labels(NamedTuple):
    """A mask, and what is known of its objects."""

    mask: np.ndarray  # (H, W) uint8 class indices, 0 = background
    numbers: np.ndarray  # (H, W) integers: the mask as stored, or a number for each object
    one_each: bool  # the latter: each object is a file or a shape of its own


def read_labels(sample: Sample, image: np.ndarray, num_classes: int, limits: Limits) -> Labels:
    """The mask of a sample, whose decoded image (H, W, C) it must fit.

    Where files or shapes of several classes overlap, the higher index wins.

    Raises:
        FileError: a file that cannot be decoded, sizes that differ, values that are no class, annotations that are
            none, or an image and a mask that seem to be swapped.
    """
    if sample.drawing is not None:
        return Labels(*draw(sample.drawing, sample.image, *image.shape[:2]), one_each=True)
    _check_swapped(sample, image, limits)
    mask = np.zeros(image.shape[:2], np.uint8)
    if sample.classes is not None:  # a file a class: any value is its class
        # Not strict: where one file is searched for a fault, the sample comes without the others.
        for (_, values), index in zip(_read_files(sample, mask.shape, limits), sample.classes, strict=False):
            np.maximum(mask, np.uint8(index if num_classes > 1 else 1), out=mask, where=values > 0)
        return Labels(mask, mask, one_each=False)
    numbers, one_each = mask, len(sample.masks) > 1
    for number, (path, values) in enumerate(_read_files(sample, mask.shape, limits), start=1):
        if num_classes > 1:
            _check_classes(path, values, num_classes)
        # A new array: `numbers` may be the old one.
        mask = np.maximum(mask, (values > 0 if num_classes == 1 else values).astype(np.uint8))
        numbers = np.where(values > 0, np.int32(number), numbers) if one_each else values
    return Labels(mask, numbers, one_each)


def _read_files(sample: Sample, size: tuple[int, ...], limits: Limits) -> Iterator[tuple[Path, np.ndarray]]:
    for path in sample.masks:
        values = decode_mask(path, sample.page, limits)
        if values.shape != size:
            found, wanted = ("x".join(map(str, reversed(shape))) + " px" for shape in (values.shape, size))
            raise FileError(
                path,
                f"found a mask of {found} for an image of {wanted}; expected the same size",
                f"export the mask of {sample.image.name} again",
            )
        yield path, values


def _check_classes(path: Path, values: np.ndarray, num_classes: int) -> None:
    highest = values.max()
    if highest < num_classes:
        return
    if highest == 255 and np.isin(values, (0, 255)).all():
        raise FileError(
            path,
            f"found the mask values 0 and 255 alone, which say foreground; expected class indices, 0 to "
            f"{num_classes - 1}",
            "set prepare.num_classes to 1, or write class indices",
        )
    raise FileError(
        path,
        f"found the mask value {highest}; expected 0 to {num_classes - 1}",
        "correct the mask, raise prepare.num_classes, or set it to 1 where values number objects",
    )


def _check_swapped(sample: Sample, image: np.ndarray, limits: Limits) -> None:
    """Refuse an image that is as flat as labels with a mask that is as noisy as a picture."""
    if len(sample.masks) != 1 or flatness(image) < FLAT_AS_LABELS:
        return
    path = sample.masks[0]
    try:
        picture = decode_image(path, 3, sample.page, limits)
    except FileError:
        return  # what is wrong with it is told by its decoding as a mask
    if flatness(picture) < NOISY_AS_A_PICTURE:
        raise FileError(
            path,
            f"found a mask that looks like a picture, and {sample.image.name} in images/ looks like labels: "
            "are the two swapped?; expected the picture in images/ and its labels in masks/",
            "exchange the two",
        )


def flatness(image: np.ndarray) -> float:
    """The share of neighbouring pixels of (H, W, C) that are equal in all channels; 1 for a single pixel."""
    equal = [(image[1:] == image[:-1]).all(axis=2), (image[:, 1:] == image[:, :-1]).all(axis=2)]
    num = sum(one.size for one in equal)
    return sum(int(np.count_nonzero(one)) for one in equal) / num if num else 1.0
