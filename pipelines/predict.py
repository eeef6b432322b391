"""`unetpp predict`: a mask for each image, by a trained model of this project or a registered one."""

import glob
import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import unetpp
from pipelines.core.files import replacing
from unetpp.errors import UserError
from unetpp.export.listing import check_export
from unetpp.export.runtimes import open_export
from unetpp.images.decode import decode_image
from unetpp.images.pictures import SUFFIXES, encode_png
from unetpp.inference.predictor import Predictor


def read_heads(text: str) -> dict[int, float] | Literal["mean"]:
    """The heads of `--heads`: "mean", which is all of them, or {2: 1.0, 4: 3.0} of "2,4:3".

    Raises:
        UserError: neither.
    """
    if text == "mean":
        return "mean"
    found = [re.fullmatch(r"(\d+)(?::(\d+\.?\d*|\.\d+))?", part.strip()) for part in text.split(",")]
    if not all(found):
        raise UserError(
            f"--heads {text}: expected mean, or depths with a weight where it is not 1, such as 2,3 or 2:1,4:3"
        )
    return {int(match[1]): float(match[2] or 1) for match in found if match}


def find_images(patterns: list[str]) -> list[Path]:
    """The image files that files, folders (searched through) and glob patterns name, sorted.

    Raises:
        UserError: a pattern that names nothing, or no image among what they name.
    """
    found: set[Path] = set()
    for pattern in patterns:
        names = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        if not names:
            raise UserError(f"{pattern}: no such file or folder, and no file matches it as a pattern")
        for path in map(Path, names):
            files = path.rglob("*") if path.is_dir() else [path]
            found.update(f for f in files if f.is_file() and (f.suffix.lower() in SUFFIXES or f == path))
    if not found:
        raise UserError(
            f"{', '.join(patterns)}: no image there; expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(found)


def load(model: str, depth: int | None, heads: str | None = None) -> Predictor:
    """A model by any name that `unetpp.load` knows, or an .onnx in the folder of an export, after its sum was compared.

    Args:
        depth: the depth to prune to, by default the deepest.
        heads: average these heads instead (`read_heads`).

    Raises:
        UserError: no such model, or a depth or a head that it does not have; a damaged one; a .pt2, which runs code
            of its author when it is opened.
    """
    file = Path(model)
    if file.suffix != ".onnx":
        return Predictor(unetpp.load(model), depth, heads=None if heads is None else read_heads(heads))
    if depth is not None or heads is not None:
        raise UserError(f"{file}: an exported file is one depth and its head: leave --depth and --heads out")
    check_export(file)
    predict_array = open_export(file)
    return Predictor(unetpp.load(file.parent), network=lambda image: torch.from_numpy(predict_array(image.numpy())))


def predict_mask(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """Mask (H, W) uint8 of an image (H, W, C) uint8, uint16 or float32: 0 and 255, class indices, or bits of labels."""
    mask = predictor.mask(image)
    return mask * np.uint8(255) if predictor.num_classes == 1 and not predictor.multilabel else mask


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) uint8 as PNG, whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(encode_png(mask))


def _check_folders(labels: list[str], model: str) -> None:
    """Refuse names by which a model that comes from elsewhere would write outside the folder it was given."""
    wrong = [label for label in labels if not re.fullmatch(r"[^/\\.][^/\\]*", label)]
    if wrong:
        raise UserError(
            f"{model}: found a label named {wrong[0]!r}; expected names that folders of masks can have: a name without "
            "slashes that does not begin with a dot"
        )


def _describe(num: int, loaded: Predictor, out: Path) -> str:
    """How many masks were written where, and what their values mean."""
    if loaded.multilabel:
        folders = ", ".join(str(out / label) for label in loaded.classes)
        return f"{num} masks of each label to {folders}: 255 where the label is"
    if len(loaded.classes) == 1:
        return f"{num} masks to {out}: foreground where not 0"
    values = ", ".join(f"{index} {name}" for index, name in enumerate(["background", *loaded.classes]))
    return f"{num} masks to {out}: {values}"


def predict(patterns: list[str], model: str, depth: int | None, out: Path, heads: str | None = None) -> None:
    """Write `out/<image name>.png` for each image; a broken image is named and the others are done.

    It holds 0 and 255, or class indices. Of a model with labels, which may lie over each other, it is
    `out/<label>/<image name>.png` for each label, 0 and 255: the folders that stage prepare reads.

    Raises:
        UserError: no image, no model, two images of one name, labels that are no names of folders, or images that
            could not be read.
    """
    images = find_images(patterns)
    names = [image.stem for image in images]
    twice = sorted({str(image) for image in images if names.count(image.stem) > 1})
    if twice:
        raise UserError(
            f"images of the same name would overwrite each other's mask: {', '.join(twice[:6])}; predict them apart"
        )
    loaded = load(model, depth, heads)
    if loaded.multilabel:
        _check_folders(loaded.classes, model)
    broken = []
    for number, image in enumerate(images, start=1):
        try:
            mask = predict_mask(loaded, decode_image(image, loaded.in_channels))
        except UserError as error:
            broken.append(str(error))
            continue
        if loaded.multilabel:
            for bit, label in enumerate(loaded.classes):
                write_mask(out / label / f"{image.stem}.png", (mask >> bit & 1) * np.uint8(255))
        else:
            write_mask(out / f"{image.stem}.png", mask)
        if number % 100 == 0:
            print(f"{number} of {len(images)} images")
    print(f"wrote {_describe(len(images) - len(broken), loaded, out)}")
    if broken:
        raise UserError(f"{len(broken)} of {len(images)} images could not be read:\n" + "\n".join(broken))
