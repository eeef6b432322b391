"""COCO annotation files: reading and rasterising the annotations of each image.

Polygons are rasterised by pycocotools, so that a mask is pixel for pixel that of COCO's own tools. Run lengths are
decoded here: if a list is too short, its C code fills the mask with arbitrary memory.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unetpp.errors import FileError, UserError, to_install


@dataclass(frozen=True)
class Shape:
    """One annotation, as in the file."""

    id: str
    class_index: int
    segmentation: list | dict  # polygons, or run lengths
    area: Any = None
    bbox: Any = None
    iscrowd: Any = 0  # 1: many objects in one shape


@dataclass(frozen=True)
class Drawing:
    """All annotations of an image. Without shapes, it is an image without objects."""

    file: Path
    size: tuple[Any, Any] | None  # width, height as in the file; None if missing
    shapes: Sequence[Shape]


def read_annotations(
    paths: list[Path],
    num_classes: int,
    classes: tuple[str, ...] | None,
    multilabel: bool = False,
    find: Callable[[Path, str], str] = lambda _, name: name,
) -> tuple[dict[str, Drawing], list[tuple[str, FileError]]]:
    """The annotations of each image, by its file's name, and problems, by their id.

    Categories are foreground if `num_classes` is 1; else their indices are their positions in `classes`, from 1, or
    without `classes` their positions in the order of their ids. With `multilabel` none of `num_classes` is background.

    Args:
        find: the name of the file that a file_name refers to in one of `paths`.

    Raises:
        FileError: a file is not a COCO file, or its categories do not match `num_classes` and `classes`.
    """
    files = {path: load_annotations(path) for path in paths}
    categories = find_categories(files)
    indices = _class_indices(categories, paths[0], num_classes, classes, multilabel)
    drawings: dict[str, Drawing] = {}
    problems: list[tuple[str, FileError]] = []
    for path, content in files.items():
        names, shapes = {}, defaultdict(list)
        for image in content["images"]:
            name = find(path, _value(image, "file_name", str, path, "an image"))
            names[_value(image, "id", int | str, path, name)] = name
            if name in drawings:
                other = drawings[name].file.name
                reason = f"found {name} twice among the images (also in {other}); expected it once"
                raise FileError(path, reason, "keep one file with all annotations of an image")
            size = image.get("width"), image.get("height")
            drawings[name] = Drawing(path, None if size == (None, None) else size, shapes[name])
        for annotation in content["annotations"]:
            id = str(annotation.get("id"))
            image = _value(annotation, "image_id", int | str, path, f"annotation {id}")
            if image not in names:
                reason = f"found annotation {id} of the image {image}, which is not listed; expected one of its images"
                problems.append((f"annotation {id}", FileError(path, reason, "list the image or remove it")))
                continue
            category = annotation.get("category_id")
            if not isinstance(category, int | str) or category not in indices:
                reason = f"found annotation {id} of the category {category}, which is not listed; expected a listed one"
                raise FileError(path, reason, "correct category_id or add the category")
            said = (annotation.get(key) for key in ("segmentation", "area", "bbox", "iscrowd"))
            shapes[names[image]].append(Shape(id, indices[category], *said))
    if any(isinstance(shape.segmentation, list) for one in drawings.values() for shape in one.shapes):
        _pycocotools(paths[0])  # once and before any work, not for every image
    return drawings, problems


def draw(drawing: Drawing, image: Path, height: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """The class index of each shape, from 1, and its area, (H, W) bool.

    Raises:
        FileError: annotations were made for another size, or a segmentation is invalid.
    """
    if drawing.size not in (None, (width, height)):
        found, wanted = "x".join(map(repr, drawing.size or ())), f"{width}x{height}"
        raise FileError(
            drawing.file,
            f"found annotations for {found} px of {image.name} of {wanted} px; expected the same size",
            "restore the image that was annotated, or annotate this one",
        )
    for shape in drawing.shapes:
        try:
            inside = _rasterise(shape.segmentation, height, width, drawing.file)
            _check_extent(shape, inside)
        except (ValueError, TypeError, OverflowError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise FileError(
                drawing.file,
                f"found annotation {shape.id} of {image.name} with {error}; expected polygons of x, y in px within "
                f"{width}x{height} px, or run lengths",
                "correct or remove the annotation",
            ) from None
        yield shape.class_index, inside


def _rasterise(segmentation: list | dict, height: int, width: int, file: Path) -> np.ndarray:
    """(H, W) bool."""
    if isinstance(segmentation, dict):
        return _from_run_lengths(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("no segmentation")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon that is not a list of three or more points")
        for value, side in zip(polygon, [width, height] * (len(polygon) // 2), strict=True):
            # For a point far outside, pycocotools would allocate memory in proportion to the distance.
            if not _is_number(value) or not -side <= value <= 2 * side:
                raise ValueError(f"the coordinate {value!r}")
    tool = _pycocotools(file)
    union = tool.merge(tool.frPyObjects(segmentation, height, width))
    return _from_run_lengths({"size": [height, width], "counts": union["counts"].decode()}, height, width)


def _check_extent(shape: Shape, inside: np.ndarray) -> None:
    """Compare the drawn shape, (H, W) bool, with the annotation's own area and bbox, if it has them.

    Tools differ by a pixel or two on each side, and some write the area of the bbox, so only shapes at another scale
    or in another place are refused.

    Raises:
        ValueError: it is one of these, or within one pixel with fractional coordinates.
    """
    sides = np.array([inside.shape[1], inside.shape[0]])
    if isinstance(shape.segmentation, list):  # by its points: a thin one may cover hardly a pixel
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in shape.segmentation])
        if sides.max() > 2 and points.max() <= 1 and (points % 1).any():
            raise ValueError("coordinates from 0 to 1, which are fractions, not px")
        box = np.array([points.min(axis=0), points.max(axis=0)]).clip(0, sides)
    else:
        points = np.argwhere(inside.T) if inside.any() else np.zeros((1, 2))
        box = np.array([points.min(axis=0), points.max(axis=0) + 1])
    size = box[1] - box[0]
    slack = 4 + 2 * size.sum()
    if _is_number(shape.area) and shape.area > 0:
        drawn = int(np.count_nonzero(inside))
        if not drawn / 2 - slack <= shape.area <= 2 * size.prod() + slack:
            raise ValueError(f"the area {shape.area:g} for a shape of {drawn} px")
    bbox = shape.bbox
    if isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox)) and min(bbox[2:]) > 0:
        corner, extent = np.reshape(bbox, (2, 2))
        if (abs(np.array([corner, corner + extent]).clip(0, sides) - box) > 2 + 0.05 * size.max()).any():
            raise ValueError(f"the bbox {bbox} for a shape in {[round(float(one), 1) for one in (*box[0], *size)]}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _from_run_lengths(segmentation: dict, height: int, width: int) -> np.ndarray:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"run lengths for the size {size!r}")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not isinstance(counts, list) or not all(type(one) is int and one >= 0 for one in counts):
        raise ValueError("counts that are not a list of lengths")
    if sum(counts) != height * width:
        raise ValueError(f"run lengths of {sum(counts)} px")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)  # background comes first
    return inside.reshape(width, height).T  # by columns


def _decompress(text: str) -> list[int]:
    """COCO's run lengths as text: five bits per letter, from the third on as differences to the one two before."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("counts that are not compressed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _pycocotools(file: Path) -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError(
            f"{file}: found polygons, which need pycocotools; expected it to be installed: {to_install('coco')}"
        ) from None
    return mask


def load_annotations(path: Path) -> dict:
    """The contents of an annotation file: lists of images, annotations and categories; any other file is refused."""
    try:
        content, found = json.loads(path.read_text(encoding="utf-8")), None
        if not isinstance(content, dict):
            found = type(content).__name__
    except (ValueError, RecursionError, OSError) as error:
        content, found = {}, f"no JSON ({error})"
    for key in ("images", "annotations", "categories") if found is None else ():
        rows = content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            found = f"no list of {key}"
    if found is not None:
        expected = "expected a COCO file with images, annotations and categories"
        raise FileError(path, f"found {found}; {expected}", "export the annotations again")
    return content


def _value(row: dict, key: str, kind: Any, path: Path, where: str) -> Any:
    value = row.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FileError(path, f"found {where} with {key} {value!r}; expected one", "export the annotations again")
    return value


def find_categories(files: Mapping[Path, dict]) -> dict[int | str, str]:
    """The names of the categories of all files by id, without mere supercategories, as Roboflow writes one."""
    names: dict[int | str, str] = {}
    for path, content in files.items():
        for row in content["categories"]:
            id, name = _value(row, "id", int | str, path, "a category"), _value(row, "name", str, path, "a category")
            if names.setdefault(id, name) != name:
                reason = f"found the category {id} as {names[id]!r} and {name!r}; expected one name"
                raise FileError(path, reason, "use the same category ids in all files")
    heads = {row.get("supercategory") for content in files.values() for row in content["categories"]}
    used = {str(row.get("category_id")) for content in files.values() for row in content["annotations"]}
    empty = {id for id, name in names.items() if name in heads and str(id) not in used}
    return {id: name for id, name in names.items() if id not in empty} if len(empty) < len(names) else names


def _class_indices(
    names: dict[int | str, str], path: Path, num_classes: int, classes: tuple[str, ...] | None, multilabel: bool
) -> dict[int | str, int]:
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise FileError(path, f"found two categories named {twice[0]!r}; expected one", "rename one")
    if classes is not None and set(names.values()) != set(classes):
        raise FileError(
            path,
            f"found the categories {', '.join(names.values())}; expected those of prepare.classes, "
            f"{', '.join(classes)}",
            "set prepare.classes to the categories, in the order of their class indices",
        )
    if num_classes == 1:
        return dict.fromkeys(names, 1)
    order = sorted(names, key=lambda id: (isinstance(id, str), id)) if classes is None else names
    indices = {id: place for place, id in enumerate(order, start=1)}
    if classes is not None:
        indices = {id: classes.index(name) + 1 for id, name in names.items()}
    background = 0 if multilabel else 1
    if len(names) != num_classes - background:
        counted = "also counts the background" if background else "counts only labels with prepare.multilabel"
        other = ", or to 1 for foreground only" if background else ""
        raise FileError(
            path,
            f"found {len(names)} categories; expected {num_classes - background}, as prepare.num_classes = "
            f"{num_classes} {counted}",
            f"set prepare.num_classes to {len(names) + background}{other}",
        )
    return indices
