"""The labels of a sample: its mask files or shapes combined into one mask (`unetpp.network.masks`)."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.core.sections.prepare import RESERVED, Prepare
from pipelines.dataset.coco import draw
from pipelines.dataset.layouts import Sample
from pipelines.dataset.object_sizes import count_numbers
from unetpp.errors import FileError, UserError
from unetpp.images.decode import decode_image, mask_values
from unetpp.images.mask_values import Meanings
from unetpp.images.pictures import Limits, read_picture
from unetpp.network.masks import IGNORE, MAX_LABELS, find_classes

# Share of neighbouring pixels that are equal. Of the 547 real pairs of DSB2018 no mask has less than 0.95, and no
# image more than 0.90 (a dim one with a zero background); half of the images have less than 0.40.
FLAT_AS_LABELS = 0.9
NOISY_AS_A_PICTURE = 0.75
BITS = np.array([0] + [1 << bit for bit in range(MAX_LABELS)], np.uint8)  # of the number of a label, from 1


class Labels(NamedTuple):
    """A mask, and facts about its objects."""

    mask: np.ndarray  # (H, W) uint8, see unetpp.network.masks
    numbers: np.ndarray  # (H, W) integers: the mask as stored, or a number for each object; for labels (K, H, W)
    one_each: bool  # the latter: each object is a file or a shape of its own
    overlap_px: int = 0  # pixels that several classes claim
    shades_px: int = 0  # foreground pixels below the highest value, if values do not number objects


class Part(NamedTuple):
    """The contribution of a file or a shape to a mask."""

    classes: np.ndarray  # (H, W) uint8 class index or number of the label, 0 for none
    stored: np.ndarray  # (H, W) integers as in the file, possibly object numbers
    unknown: np.ndarray | None = None  # (H, W) bool: unlabelled pixels
    shades_px: int = 0


def limits_of(params: Prepare) -> Limits:
    """The limits of decoding."""
    return Limits(params.max_pixels, params.max_file_mib)


def read_labels(sample: Sample, image: np.ndarray, params: Prepare) -> Labels:
    """The mask of a sample, which must match its decoded image (H, W, C).

    Where files or shapes of several classes overlap, a pixel has all of these labels with `multilabel`, and otherwise
    the one with the highest index. A pixel that has the value `ignore` in any file is IGNORE.

    Raises:
        FileError: a file cannot be decoded, sizes differ, values are not classes, annotations are invalid, or image
            and mask seem to be swapped.
    """
    size = image.shape[:2]
    if sample.drawing is not None:
        shapes = zip(draw(sample.drawing, sample.image, *size), sample.drawing.shapes, strict=True)
        parts = (Part(inside * np.uint8(index), inside & (shape.iscrowd != 1)) for (index, inside), shape in shapes)
    else:
        _check_swapped(sample, image, params)
        parts = _read_parts(sample, size, params)
    one_each = sample.drawing is not None or (sample.classes is None and len(sample.masks) > 1)
    mask, unknown, overlap = np.zeros(size, np.uint8), np.zeros(size, bool), np.zeros(size, bool)
    numbers = np.zeros((params.num_classes, *size) if params.multilabel else size, np.int32)
    shades_px = 0
    for number, part in enumerate(parts, start=1):
        if part.unknown is not None:
            unknown |= part.unknown
        shades_px += part.shades_px
        stored = (part.stored > 0) * np.int32(number) if one_each else part.stored
        if params.multilabel:
            mask |= BITS[part.classes]
            for label, inside in find_classes(part.classes):
                np.copyto(numbers[label - 1], stored, where=inside & (stored > 0), casting="unsafe")
            continue
        if params.num_classes > 2:
            overlap |= (mask > 0) & (part.classes > 0) & (mask != part.classes)
        if one_each:
            on_top = (part.classes > mask) | ((part.classes == mask) & (stored > 0))
            numbers[on_top] = stored[on_top]
        else:
            numbers = stored
        mask = np.maximum(mask, part.classes)
    if params.multilabel:
        overlap = mask & (mask - np.uint8(1)) > 0  # more than one bit
    elif sample.classes is not None:
        numbers = mask
    if unknown.any():
        numbers = np.where(unknown, 0, numbers)
        mask[unknown] = IGNORE
    return Labels(mask, numbers, one_each, int(np.count_nonzero(overlap & ~unknown)), shades_px)


def _read_parts(sample: Sample, size: tuple[int, ...], params: Prepare) -> Iterator[Part]:
    meanings = meanings_of(params)
    # Not strict: in the search for a faulty file, the sample comes without the others.
    for path, index in zip(sample.masks, sample.classes or (None,) * len(sample.masks), strict=False):
        picture = read_picture(path, sample.page, limits_of(params))
        shades = params.mask_threshold is not None and (index is not None or params.num_classes == 1)
        if meanings:
            values = meanings.read(picture, params.mask_threshold)
        else:
            values = mask_values(picture, lossy=shades and params.ignore is None)
        if values.shape != size:
            found, wanted = ("x".join(map(str, reversed(shape))) + " px" for shape in (values.shape, size))
            raise FileError(
                path,
                f"found a mask of {found} for an image of {wanted}; expected the same size",
                f"export the mask of {sample.image.name} again",
            )
        ignore = IGNORE if meanings else params.ignore
        unknown = None if ignore is None else values == ignore
        if unknown is not None:
            values = np.where(unknown, 0, values)  # of the same type
        if meanings:
            classes = values if index is None else (values > 0) * np.uint8(index)
            yield Part(classes, classes, unknown)
            continue
        if index is None and params.num_classes > 1:
            _check_classes(path, values, params.num_classes, params.multilabel)
            yield Part(values.astype(np.uint8), values, unknown)
            continue
        counts, numbered = count_numbers(values)
        shaded = picture.lossy or (len(counts) > 1 and not numbered)
        if params.mask_threshold is not None and not shaded:
            _check_threshold(path, values, params.mask_threshold)
        inside = values >= (params.mask_threshold or 1)
        classes = inside * np.uint8(index if index is not None and params.num_classes > 1 else 1)
        told = shaded and params.mask_threshold is None
        yield Part(classes, inside if shaded else values, unknown, int(counts[:-1].sum()) if told else 0)


def meanings_of(params: Prepare) -> Meanings | None:
    """The table of `prepare.values`; None if masks contain class indices, or foreground, themselves."""
    if params.values is None:
        return None
    names = params.classes or () if params.num_classes > 1 else ()
    return _meanings(tuple(params.values.items()), params.ignore, names, int(params.background))


@lru_cache(maxsize=4)
def _meanings(values: tuple[tuple[int | str, str], ...], ignore: int | None, names: tuple[str, ...], first: int):
    """For classes with these names, the first with the index `first`; any other name is foreground."""
    indices = {name: index for index, name in enumerate(names, first)} | {"background": 0, "ignore": IGNORE}
    colours = isinstance(values[0][0], str)
    table = {
        int(stored[1:], 16) if isinstance(stored, str) else stored: indices.get(name, 1) for stored, name in values
    }
    if ignore is not None:
        table[ignore] = IGNORE
    stored = sorted(table)
    return Meanings(np.array(stored), np.array([table[one] for one in stored], np.uint8), colours, IGNORE)


def _check_threshold(path: Path, values: np.ndarray, threshold: int) -> None:
    """Refuse a threshold for numbers of objects or classes, which are not shades of foreground."""
    below = values[(values > 0) & (values < threshold)]
    if below.size:
        raise FileError(
            path,
            f"found the value {below.min()} in whole areas, and prepare.mask_threshold is {threshold}, which is for "
            "shades of foreground; expected no number of an object or class below it",
            "set prepare.mask_threshold to null, or prepare.ignore to this value if it marks unlabelled pixels",
        )


def _check_classes(path: Path, values: np.ndarray, num_classes: int, multilabel: bool) -> None:
    highest, legal = values.max(), num_classes if multilabel else num_classes - 1
    if highest <= legal:
        return
    if highest == 255 and np.isin(values, (0, 255)).all():
        found, expected = "values 0 and 255 only, which mean foreground", f"class indices, 0 to {legal}"
        fix = "set prepare.num_classes to 1, or write class indices"
        if multilabel:
            fix = "put the masks of each label into a folder masks/<label>/, and name these in prepare.classes"
    else:
        found, expected = f"value {highest}", f"the number of a label, 0 to {legal}" if multilabel else f"0 to {legal}"
        other = (
            "put overlapping labels into a folder each, masks/<label>/"
            if multilabel
            else "set it to 1 if values number objects"
        )
        fix = (
            f"correct the mask, raise prepare.num_classes, {other}, or set prepare.ignore to this value if it marks "
            "unlabelled pixels"
        )
    raise FileError(path, f"found the mask {found}; expected {expected}", fix)


def check_meanings(samples: Iterable[Sample], params: Prepare) -> None:
    """Refuse params about values if masks are shapes, which have none, and a class 0 that no file can draw.

    Raises:
        UserError: with the file of the shapes, or a folder of masks.
    """
    one = next((sample for sample in samples if sample.drawing is not None or sample.classes is not None), None)
    if one is None:
        return
    drawn = one.drawing
    if not params.background:
        where = (
            f"{drawn.file}: found COCO annotations" if drawn else f"{one.masks[0].parent}: found a mask for each class"
        )
        raise UserError(
            f"{where}, and prepare.background is false; expected true, as pixels outside all classes are background"
        )
    for key in ("ignore", "values"):
        if drawn is not None and (found := getattr(params, key)) is not None:
            raise UserError(
                f"{drawn.file}: found COCO annotations, and prepare.{key} is {found}, for mask files; expected null, "
                f"as shapes have no values: set prepare.{key} to null, or export masks instead of shapes"
            )


def _check_swapped(sample: Sample, image: np.ndarray, params: Prepare) -> None:
    """Refuse an image that is as flat as labels with a mask that is as noisy as a picture."""
    if len(sample.masks) != 1 or flatness(image) < FLAT_AS_LABELS:
        return
    path = sample.masks[0]
    try:
        picture = decode_image(path, 3, sample.page, limits_of(params))
    except FileError:
        return  # decoding it as a mask reports the fault
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


def class_names(params: Prepare) -> list[str] | None:
    """The names of the classes; a single class has one if all foreground has the same name."""
    names = params.classes
    if params.num_classes == 1:
        called = names or (params.values or {}).values()
        names = tuple(dict.fromkeys(name for name in called if name not in RESERVED))
        names = names if len(names) == 1 else None
    return list(names) if names else None
