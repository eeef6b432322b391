"""What is written of an image: masks, probabilities, overlays, objects and their measures, all files or none."""

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from pipelines.core.files import replacing
from pipelines.core.tables import write_rows
from pipelines.prediction.large import MAX_OBJECTS, check_numbers, write_strips
from pipelines.prediction.objects import COLUMNS, ObjectFinder
from pipelines.prediction.own_values import own_values, to_own_values
from pipelines.prediction.parted import find_parted
from unetpp.errors import FileError, UserError
from unetpp.images.decode import decode_image
from unetpp.images.limits import Limits
from unetpp.images.pictures import encode_png, is_tiff, picture_size
from unetpp.images.row_writers import write_tiff
from unetpp.inference.overlay import overlay
from unetpp.inference.predictor import Predictor
from unetpp.inference.tiles import predict_image, to_mask
from unetpp.models.about import About

Kind = Literal["mask", "values", "probs", "probs8", "overlay", "labels", "measurements"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SUFFIXES: dict[str, str] = {"probs": ".npy", "measurements": ".csv"}  # of the others .png
# Of what is decoded at once. A file of any size is read: a TIFF by its parts.
LIMITS = Limits(max_file_mib=2**40, name="--max-pixels")
WHOLE_PX = 2**25  # so many pixels are held as a whole
PARTED_PX = 2**27  # so many with their objects, which takes some 10 GB
SMALL_BYTES = 2**16  # a file of less is not looked into beforehand: at worst it is held as a whole
NOTHING_HELD: Mapping[Path, Path] = {}


@dataclass(frozen=True)
class Outputs:
    """What is asked for of each image. Masks lie in the folder itself, others in one of their name.

    - mask: PNG of 0 and 255, or of class indices; of labels 0 and 255, a folder for each.
    - values: PNG of the values or colours that the masks of the set have (`prepare.values`).
    - probs: .npy (K, H, W) float16; probs8: PNG of 8 bits, of several classes or labels a folder for each.
    - overlay: PNG, the mask over the image; labels: PNG of 16 bits, the objects numbered; of labels a folder for each;
      of a model that parts objects TIFF of 16 bits, or of 32 where there are more.
    - measurements: CSV, a row for each object.
    """

    save: tuple[Kind, ...] = ("mask",)
    limits: Limits = LIMITS

    def of(self, about: About) -> "Outputs":
        """Where nothing is asked for what is usual: the mask, and the objects of a model that parts them."""
        return self if self.save else replace(self, save=("mask", "labels") if about.separation() else ("mask",))

    def parts(self, about: About) -> bool:
        """Whether objects are parted, for which an image is held as a whole."""
        return about.separation() is not None and bool({"labels", "measurements"} & set(self.save))

    def check(self, about: About) -> None:
        """Refuse what this model cannot give, before any work is done.

        Raises:
            UserError: values that it does not know, or names of classes that no folder can have.
        """
        if "values" in self.save:
            own_values(about)
        wrong = [name for _, name in self.places(about) if not re.fullmatch(r"([^/\\.][^/\\]*)?", name)]
        if wrong or (about.multilabel and "" in about.classes):
            raise UserError(
                f"found a label named {(wrong or [''])[0]!r}; expected names that folders of masks can have: a name "
                "without slashes that does not begin with a dot"
            )

    def places(self, about: About) -> list[tuple[Kind, str]]:
        """Each file of an image: what it is, and the class or label that it is of, or "" for all."""
        found: list[tuple[Kind, str]] = []
        for kind in self.save:
            several = (about.multilabel and kind in ("mask", "labels")) or (about.num_classes > 1 and kind == "probs8")
            names = about.classes if about.multilabel else about.names
            found.extend((kind, name) for name in (names if several else [""]))
        return found

    def paths(self, about: About, folder: Path, stem: str, as_tiff: bool = False) -> list[Path]:
        """The files of an image, in the order of `places`.

        Args:
            as_tiff: pictures are TIFF (`is_tiff_of_rows`).
        """
        parts = self.parts(about)
        as_tiff = as_tiff and not parts
        suffixes, other = (SUFFIXES | {"probs": ".tif"}, ".tif") if as_tiff else (SUFFIXES, ".png")
        suffixes = suffixes | ({"labels": ".tif"} if parts else {})
        return [
            folder / ("" if kind == "mask" else kind) / name / f"{stem}{suffixes.get(kind, other)}"
            for kind, name in self.places(about)
        ]

    def is_tiff_of_rows(self, image: Path) -> bool:
        """Whether an image is a large TIFF, whose files are TIFF as well and lie where it lies on the earth."""
        try:
            return is_tiff(image) and is_large(image, self.limits)
        except (UserError, OSError):  # who reads it will say so
            return False


def write_outputs(predictor: Predictor, image: Path, folder: Path, stem: str, outputs: Outputs) -> list[Path]:
    """Predict an image and write its files, all of them whole, or none.

    Returns:
        what was written.

    Raises:
        UserError: an image that cannot be read, or an output that cannot hold what was found.
    """
    if is_large(image, outputs.limits):
        return write_large(predictor, image, folder, stem, outputs)
    return _write_whole(predictor, image, folder, stem, outputs)


def _write_whole(predictor: Predictor, image: Path, folder: Path, stem: str, outputs: Outputs) -> list[Path]:
    pixels = decode_image(image, predictor.in_channels, limits=outputs.limits)
    return write_files(predictor.about, pixels, predict_image(predictor.engine, pixels), folder, stem, outputs, image)


def is_large(image: Path, limits: Limits) -> bool:
    """Whether an image has more pixels than are held as a whole with their probabilities, as its header says.

    Raises:
        FileError: no picture, or one beyond the limits.
    """
    return image.stat().st_size >= SMALL_BYTES and math.prod(picture_size(image, limits)) > WHOLE_PX


def write_large(predictor: Predictor, image: Path, folder: Path, stem: str, outputs: Outputs) -> list[Path]:
    """`write_outputs` of a large image, strip by strip, but for objects that a model parts: these need the whole."""
    if outputs.parts(predictor.about):
        if (num_px := math.prod(picture_size(image, outputs.limits))) > PARTED_PX:
            raise FileError(
                image,
                f"found {num_px:,} pixels; expected at most {PARTED_PX:,}, since objects are parted in the whole image",
                "cut it into tiles, or write the mask alone (--save mask)",
            )
        return _write_whole(predictor, image, folder, stem, outputs)
    paths = outputs.paths(predictor.about, folder, stem, outputs.is_tiff_of_rows(image))
    write_strips(predictor, image, stem, outputs.places(predictor.about), paths, outputs.limits)
    return paths


def write_files(
    about: About,
    pixels: np.ndarray,
    probs: np.ndarray,
    folder: Path,
    stem: str,
    outputs: Outputs,
    image: Path,
    held: Mapping[Path, Path] = NOTHING_HELD,
) -> list[Path]:
    """Write the files of an image (H, W, C) whose probabilities (K, H, W) are known, all of them whole, or none.

    Args:
        held: by folder, what is kept for many files (`holding`).
    """
    paths = outputs.paths(about, folder, stem)
    with ExitStack() as stack:
        for path, write in zip(paths, _writers(about, pixels, probs, stem, outputs.save, image), strict=True):
            write(stack.enter_context(replacing(path, held.get(path.parent))))
    return paths


def _writers(
    about: About, pixels: np.ndarray, probs: np.ndarray, stem: str, save: Sequence[Kind], image: Path
) -> Iterator[Callable[[Path], object]]:
    """What writes each file of an image, in the order of `Outputs.places`."""
    mask = to_mask(probs[None], about.num_classes, about.multilabel)[0]
    asks, numbers, parted, finder = bool({"labels", "measurements"} & set(save)), None, None, ObjectFinder(about)
    if asks and about.separation():
        numbers, parted = find_parted(mask, probs, about)
    elif asks:
        finder.add(mask)
        finder.close()
        if "labels" in save:
            check_numbers(image, finder.most)
    for kind in save:
        if kind == "mask" and about.multilabel:
            yield from (_png((mask >> bit & 1) * np.uint8(255)) for bit in range(about.num_classes))
        elif kind == "mask":
            yield _png(mask * np.uint8(255) if about.num_classes == 1 else mask)
        elif kind == "values":
            yield _png(to_own_values(mask, about))
        elif kind == "probs":
            file = io.BytesIO()
            np.save(file, probs.astype(np.float16))
            yield _bytes(file.getvalue())
        elif kind == "probs8":
            yield from (_png(np.rint(plane * 255).astype(np.uint8)) for plane in probs[: about.num_classes])
        elif kind == "overlay":
            yield _png(overlay(pixels, mask, multilabel=about.multilabel, background=about.background))
        elif kind == "labels" and numbers is not None:
            dtype = np.uint16 if numbers.max(initial=0) <= MAX_OBJECTS else np.uint32
            yield partial(write_tiff, plane=numbers.astype(dtype))
        elif kind == "labels":
            yield from (_png(plane.astype(np.uint16)) for plane in finder.number(mask))
        else:
            yield partial(
                write_rows, header=("image", *COLUMNS), rows=((stem, *one) for one in parted or finder.objects())
            )


def _png(picture: np.ndarray) -> Callable[[Path], object]:
    return _bytes(encode_png(picture))


def _bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)
