"""Images that are not held as a whole: read by windows, predicted in strips, written as rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np

from pipelines.core.files import replacing
from pipelines.prediction.own_values import to_own_values
from unetpp.images.limits import Limits
from unetpp.images.row_writers import Write, png_rows, tiff_rows
from unetpp.images.windows import WindowedImage, open_windows
from unetpp.inference.predictor import Predictor
from unetpp.inference.tiles import to_mask
from unetpp.inference.windows import predict_strips
from unetpp.models.about import About

ROWS = ("mask", "values", "probs", "probs8")  # what can be written before the last row is known


def write_strips(
    predictor: Predictor, image: Path, places: Sequence[tuple[str, str]], paths: Sequence[Path], limits: Limits
) -> None:
    """Predict an image and write its files strip by strip, all of them whole, or none.

    Args:
        places, paths: each file, as `Outputs` has it: TIFF, PNG, or .npy of probabilities.

    Raises:
        FileError: an image that cannot be read, or is too large for what has to hold it.
    """
    with ExitStack() as files:
        partials = [files.enter_context(replacing(path)) for path in paths]
        with open_windows(image, predictor.in_channels, limits) as windows, ExitStack() as opened:
            writers: list[Write] = []
            for _, probs in predict_strips(predictor.engine, windows):
                each = [_rows(kind, name, probs, predictor.about) for kind, name in places]
                if not writers:
                    suffixes = [path.suffix for path in paths]
                    parts = [_open(*one, windows) for one in zip(suffixes, partials, each, strict=True)]
                    writers = [opened.enter_context(part) for part in parts]
                for write, rows in zip(writers, each, strict=True):
                    write(rows)


def _rows(kind: str, name: str, probs: np.ndarray, about: About) -> np.ndarray:
    """The rows (n, W) or (n, W, K) of one file, of probabilities (K, n, W)."""
    if kind == "probs":
        return np.moveaxis(probs, 0, 2).astype(np.float16)
    if kind == "probs8":
        names = about.classes if about.multilabel else about.names
        return np.rint(probs[names.index(name) if name else 0] * 255).astype(np.uint8)
    mask = to_mask(probs[None], about.num_classes, about.multilabel)[0]
    if kind == "values":
        return to_own_values(mask, about)
    if about.multilabel:
        return (mask >> about.classes.index(name) & 1) * np.uint8(255)
    return mask * np.uint8(255) if about.num_classes == 1 else mask


def _open(suffix: str, file: Path, rows: np.ndarray, image: WindowedImage) -> AbstractContextManager[Write]:
    shape = (image.shape[0], *rows.shape[1:])
    if suffix == ".tif":
        return tiff_rows(file, shape, rows.dtype, image.tags)
    return png_rows(file, shape, rows.dtype) if suffix == ".png" else _npy_rows(file, shape, rows.dtype)


@contextmanager
def _npy_rows(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[Callable[[np.ndarray], None]]:
    """Rows (n, W, K) of an array (K, H, W)."""
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
