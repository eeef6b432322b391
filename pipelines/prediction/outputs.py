"""The output files of an image: masks, probabilities, overlays, objects and their measurements, all files or none."""

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
SUFFIXES: dict[str, str] = {"probs": ".npy", "measurements": ".csv"}  # the others: .png
# Limits of what is decoded at once. Files may have any size: a TIFF is read in parts.
LIMITS = Limits(max_file_mib=2**40, name="--max-pixels")
WHOLE_PX = 2**25  # images of at most this many pixels are held as a whole
PARTED_PX = 2**27  # the same if touching objects are separated, which takes some 10 GB
SMALL_BYTES = 2**16  # the header of a smaller file is not read in advance: at worst the image is held as a whole
NOTHING_HELD: Mapping[Path, Path] = {}


@dataclass(frozen=True)
class Outputs:
    """The outputs requested for each image. Masks are in the output folder itself, others in a subfolder of their name.

    - mask: PNG of 0 and 255, or of class indices; for labels a PNG of 0 and 255 in a folder per label.
    - values: PNG of the values or colours of the dataset's own masks (`prepare.values`).
    - probs: .npy (K, H, W) float16; probs8: 8-bit PNG, with several classes or labels in a folder for each.
    - overlay: PNG, the mask drawn over the image.
    - labels: 16-bit PNG of object numbers, for labels in a folder for each; a TIFF of 16 bits, or 32 if there are more
      objects, for a model that separates touching objects.
    - measurements: CSV, one row per object.
    """

    save: tuple[Kind, ...] = ("mask",)
    limits: Limits = LIMITS

    def of(self, about: About) -> "Outputs":
        """Each kind once; if nothing was requested, the defaults: the mask, and objects if the model separates them."""
        default = ("mask", "labels") if about.separation() else ("mask",)
        return replace(self, save=tuple(dict.fromkeys(self.save)) or default)

    def parts(self, about: About) -> bool:
        """Whether touching objects are separated, for which an image is held as a whole."""
        return about.separation() is not None and bool({"labels", "measurements"} & set(self.save))

    def check(self, about: About) -> None:
        """Refuse outputs that this model cannot produce, before any work is done.

        Raises:
            UserError: mask values that the model does not know, or names of classes that cannot be folder names.
        """
        if "values" in self.save:
            own_values(about)
        wrong = [name for _, name in self.places(about) if not re.fullmatch(r"([^/\\.][^/\\]*)?", name)]
        if wrong or (about.multilabel and "" in about.classes):
            raise UserError(
                f"found a label named {(wrong or [''])[0]!r}; expected labels that can be folder names: not empty, "
                "without slashes, and not beginning with a dot"
            )

    def places(self, about: About) -> list[tuple[Kind, str]]:
        """Each output file of an image: its kind, and the class or label that it shows, or "" for all."""
        found: list[tuple[Kind, str]] = []
        for kind in self.save:
            several = (about.multilabel and kind in ("mask", "labels")) or (about.num_classes > 1 and kind == "probs8")
            names = about.classes if about.multilabel else about.names
            found.extend((kind, name) for name in (names if several else [""]))
        return found

    def paths(self, about: About, folder: Path, stem: str, as_tiff: bool = False) -> list[Path]:
        """The output files of an image, in the order of `places`.

        Args:
            as_tiff: write pictures as TIFF (see `is_tiff_of_rows`).
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
        """Whether an image is a large TIFF, whose outputs are TIFFs with the same georeference."""
        try:
            return is_tiff(image) and is_large(image, self.limits)
        except (UserError, OSError):  # reported when the image is read
            return False


def write_outputs(predictor: Predictor, image: Path, folder: Path, stem: str, outputs: Outputs) -> list[Path]:
    """Predict an image and write its output files: all of them complete, or none.

    Returns:
        the paths of the files.

    Raises:
        UserError: the image cannot be read, or has more objects than an output can number.
    """
    if is_large(image, outputs.limits):
        return write_large(predictor, image, folder, stem, outputs)
    return _write_whole(predictor, image, folder, stem, outputs)


def _write_whole(predictor: Predictor, image: Path, folder: Path, stem: str, outputs: Outputs) -> list[Path]:
    pixels = decode_image(image, predictor.in_channels, limits=outputs.limits)
    return write_files(predictor.about, pixels, predict_image(predictor.engine, pixels), folder, stem, outputs, image)


def is_large(image: Path, limits: Limits) -> bool:
    """Whether an image, by its header, has too many pixels to be held as a whole with its probabilities.

    Raises:
        FileError: not a picture, or a picture beyond the limits.
    """
    return image.stat().st_size >= SMALL_BYTES and math.prod(picture_size(image, limits)) > WHOLE_PX


def write_large(predictor: Predictor, image: Path, folder: Path, stem: str, outputs: Outputs) -> list[Path]:
    """`write_outputs` of a large image, strip by strip; separating touching objects needs the whole image."""
    if outputs.parts(predictor.about):
        if (num_px := math.prod(picture_size(image, outputs.limits))) > PARTED_PX:
            raise FileError(
                image,
                f"found {num_px:,} pixels; expected at most {PARTED_PX:,} to separate objects, which needs the whole "
                "image in memory",
                "cut it into tiles, or write only the mask (--save mask)",
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
    """Write the output files of an image (H, W, C) from its probabilities (K, H, W): all of them complete, or none.

    Args:
        held: by folder, the scratch folder that many files share (`holding`).
    """
    paths = outputs.paths(about, folder, stem)
    with ExitStack() as stack:
        for path, write in zip(paths, _writers(about, pixels, probs, stem, outputs.save, image), strict=True):
            write(stack.enter_context(replacing(path, held.get(path.parent))))
    return paths


def _writers(
    about: About, pixels: np.ndarray, probs: np.ndarray, stem: str, save: Sequence[Kind], image: Path
) -> Iterator[Callable[[Path], object]]:
    """A function that writes each file of an image, in the order of `Outputs.places`."""
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
