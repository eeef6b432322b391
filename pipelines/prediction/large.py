"""Images that are not held as a whole: read in windows, predicted in strips, written in rows."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from pipelines.core.files import replacing
from pipelines.core.tables import write_rows
from pipelines.prediction.objects import COLUMNS, ObjectFinder
from pipelines.prediction.own_values import to_own_values
from unetpp.errors import FileError
from unetpp.images.display import find_middle
from unetpp.images.limits import Limits
from unetpp.images.row_writers import Write, png_rows, tiff_rows
from unetpp.images.windows import WindowedImage, open_windows
from unetpp.inference.overlay import overlay
from unetpp.inference.predictor import Predictor
from unetpp.inference.tiles import to_mask
from unetpp.inference.windows import BLOCK_PX, predict_strips
from unetpp.models.about import About

MAX_OBJECTS = 65535  # the most that 16 bits can number


def write_strips(
    predictor: Predictor,
    image: Path,
    stem: str,
    places: Sequence[tuple[str, str]],
    paths: Sequence[Path],
    limits: Limits,
) -> None:
    """Predict an image and write its files strip by strip: all of them complete, or none.

    Objects are known only after the last strip, so masks wait in a temporary file.

    Args:
        stem: name of the image in the table of objects.
        places, paths: the files of `Outputs.places` and `Outputs.paths`: TIFF, PNG, .npy of probabilities, or CSV.

    Raises:
        FileError: the image cannot be read, or has more pixels or objects than an output can hold.
    """
    about, kinds = predictor.about, {kind for kind, _ in places}
    with ExitStack() as files:
        partials = [files.enter_context(replacing(path)) for path in paths]
        todo = list(zip(places, partials, strict=True))
        with open_windows(image, predictor.in_channels, limits) as windows, ExitStack() as opened:
            middle = find_middle(lambda: _parts(windows)) if "overlay" in kinds else None
            finder = ObjectFinder(about) if kinds & {"labels", "measurements"} else None
            masks = opened.enter_context(tempfile.TemporaryFile(dir=paths[0].parent)) if "labels" in kinds else None
            writers: list[Write] = []
            heights: list[int] = []
            for top, probs in predict_strips(predictor.engine, windows):
                heights.append(probs.shape[1])
                if finder is not None:
                    mask = to_mask(probs[None], about.num_classes, about.multilabel)[0]
                    finder.add(mask, top)
                    if masks is not None:
                        masks.write(mask.tobytes())
                each = [
                    (partial, _rows(kind, name, top, probs, windows, about, middle))
                    for (kind, name), partial in todo
                    if kind not in ("labels", "measurements")
                ]
                if not writers:
                    writers = [opened.enter_context(_open(file, rows, windows)) for file, rows in each]
                for write, (_, rows) in zip(writers, each, strict=True):
                    write(rows)
            if finder is None:
                return
            finder.close()
            if masks is not None:
                labels = [partial for (kind, _), partial in todo if kind == "labels"]
                _write_labels(finder, masks, heights, labels, windows)
        for (kind, _), partial in todo:
            if kind == "measurements":
                write_rows(partial, ("image", *COLUMNS), ((stem, *one) for one in finder.objects()))


def check_numbers(image: Path, most: int) -> None:
    """Refuse more objects than 16 bits can number.

    Raises:
        FileError: more objects than a PNG can number.
    """
    if most > MAX_OBJECTS:
        raise FileError(
            image,
            f"found more than {MAX_OBJECTS} objects; expected at most as many as a 16-bit PNG can number",
            "cut it into tiles",
        )


def _write_labels(
    finder: ObjectFinder, masks: IO[bytes], heights: Sequence[int], files: Sequence[Path], image: WindowedImage
) -> None:
    """Write the numbers of the objects, in a second pass over the strips of the mask."""
    if files[0].suffix != ".tif":
        check_numbers(image.path, finder.most)
    dtype, width, top = np.uint16 if finder.most <= MAX_OBJECTS else np.uint32, image.shape[1], 0
    masks.seek(0)
    with ExitStack() as opened:
        empty = np.zeros((0, width), dtype)
        writers = [opened.enter_context(_open(file, empty, image)) for file in files]
        for height in heights:
            mask = np.frombuffer(masks.read(height * width), np.uint8).reshape(height, width)
            for write, plane in zip(writers, finder.number(mask, top), strict=True):
                write(plane.astype(dtype))
            top += height


def _parts(image: WindowedImage) -> Iterator[np.ndarray]:
    """All rows, a block at a time."""
    height, width, _ = image.shape
    step = max(1, BLOCK_PX // width)
    for top in range(0, height, step):
        yield image.read(top, 0, min(step, height - top), width)


def _rows(
    kind: str,
    name: str,
    top: int,
    probs: np.ndarray,
    image: WindowedImage,
    about: About,
    middle: tuple[float, float] | None,
) -> np.ndarray:
    """The rows (n, W) or (n, W, K) of one file, from row `top` on, made from probabilities (K, n, W)."""
    if kind == "probs":
        return np.moveaxis(probs, 0, 2).astype(np.float16)
    if kind == "probs8":
        names = about.classes if about.multilabel else about.names
        return np.rint(probs[names.index(name) if name else 0] * 255).astype(np.uint8)
    mask = to_mask(probs[None], about.num_classes, about.multilabel)[0]
    if kind == "values":
        return to_own_values(mask, about)
    if kind == "overlay":
        pixels = image.read(top, 0, len(mask), image.shape[1])
        return overlay(pixels, mask, multilabel=about.multilabel, background=about.background, middle=middle)
    if about.multilabel:
        return (mask >> about.classes.index(name) & 1) * np.uint8(255)
    return mask * np.uint8(255) if about.num_classes == 1 else mask


def _open(file: Path, rows: np.ndarray, image: WindowedImage) -> AbstractContextManager[Write]:
    shape = (image.shape[0], *rows.shape[1:])
    if file.suffix == ".tif":
        return tiff_rows(file, shape, rows.dtype, image.tags)
    return png_rows(file, shape, rows.dtype) if file.suffix == ".png" else _npy_rows(file, shape, rows.dtype)


@contextmanager
def _npy_rows(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[Callable[[np.ndarray], None]]:
    """A writer of rows (n, W, K) into the file of an array (K, H, W)."""
    height, width, num = shape
    with file.open("wb") as opened:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (num, height, width)}
        np.lib.format.write_array_header_1_0(opened, header)
        begin, top = opened.tell(), 0

        def write(rows: np.ndarray) -> None:
            nonlocal top
            for index in range(num):
                opened.seek(begin + (index * height + top) * width * dtype.itemsize)
                opened.write(np.ascontiguousarray(rows[..., index]).tobytes())
            top += len(rows)

        yield write
