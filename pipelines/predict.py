"""`unetpp predict`: a mask for each image, by a trained model of this project or a registered one."""

import fnmatch
import glob
import os
import re
from pathlib import Path
from typing import Literal

import numpy as np

import unetpp
from pipelines.console.progress import watched
from pipelines.core.files import check_outputs, replacing
from pipelines.storage.folder_walk import PLAIN, walk
from pipelines.storage.templates import is_picture
from unetpp.engines.family import find_family
from unetpp.errors import UserError
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


def named(pattern: str) -> list[Path]:
    """The files and folders of this name, or else those that it matches as a pattern."""
    return [Path(name) for name in ([pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True))]


def find_images(patterns: list[str]) -> tuple[list[Path], list[str]]:
    """The image files that files, folders (searched through) and glob patterns name, sorted, and what is no such file.

    Raises:
        UserError: a pattern that names nothing, or no image among what they name.
    """
    found: set[Path] = set()
    problems: list[str] = []
    for pattern in patterns:
        base, rest = _split(pattern)
        names = named(base)
        matched = bool(names and not rest)
        for path in names:
            if path.is_dir():
                files, refused = walk(path, "name {} itself")
                chosen = [path / name for name in files if (_fits(name.parts, rest) if rest else is_picture(name))]
                found.update(chosen)
                matched |= bool(chosen)
                problems += map(str, refused)
            elif path.is_file():
                found.add(path)
            else:
                problems.append(f"{path}: found a link to nothing, or {PLAIN}: leave it out")
        if not matched:
            raise UserError(
                "\n".join([f"{pattern}: no such file or folder, and no file matches it as a pattern", *problems])
            )
    if not found:
        expected = f"expected files ending in {', '.join(sorted(SUFFIXES))}"
        raise UserError("\n".join([f"{', '.join(patterns)}: no image there; {expected}", *problems]))
    return sorted(found), problems


def _split(pattern: str) -> tuple[str, tuple[str, ...]]:
    """What a pattern names down to `**`, and the rest: folders are walked in one way, whoever asks for it."""
    parts = Path(pattern).parts
    if "**" not in parts or os.path.exists(pattern):
        return pattern, ()
    at = parts.index("**")
    return str(Path(*parts[:at])), parts[at:]


def _fits(name: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a name are those of a pattern, in which `**` stands for any number of them."""
    if not pattern or not name:
        return not name and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return _fits(name, pattern[1:]) or _fits(name[1:], pattern)
    return fnmatch.fnmatchcase(name[0], pattern[0]) and _fits(name[1:], pattern[1:])


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
    return Predictor(find_family(file))


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
    if loaded.num_classes == 1 or loaded.names == ["background", "1"]:
        return f"{num} masks to {out}: {'foreground' if loaded.classes == ['1'] else loaded.classes[0]} where not 0"
    values = ", ".join(f"{index} {name}" for index, name in enumerate(loaded.names))
    return f"{num} masks to {out}: {values}"


def predict(
    patterns: list[str], model: str, depth: int | None, out: Path, heads: str | None = None, overwrite: bool = False
) -> None:
    """Write `out/<image name>.png` for each image; a broken image is named and the others are done.

    It holds 0 and 255, or class indices. Of a model with labels, which may lie over each other, it is
    `out/<label>/<image name>.png` for each label, 0 and 255: the folders that stage prepare reads.

    Args:
        overwrite: replace masks that are there; one that is an image to be read never.

    Raises:
        UserError: no image, no model, two images of one name, labels that are no names of folders, files in the way,
            or images that could not be read.
    """
    images, broken = find_images(patterns)
    names = [image.stem for image in images]
    twice = sorted({str(image) for image in images if names.count(image.stem) > 1})
    if twice:
        raise UserError(
            f"images of the same name would overwrite each other's mask: {', '.join(twice[:6])}; predict them apart"
        )
    loaded = load(model, depth, heads)
    if loaded.multilabel:
        _check_folders(loaded.classes, model)
    folders = [out / label for label in loaded.classes] if loaded.multilabel else [out]
    searched = [path for pattern in patterns for path in named(_split(pattern)[0]) if path.is_dir()]
    masks = [folder / f"{name}.png" for folder in folders for name in names]
    check_outputs(files=masks, inputs=[*images, *searched, Path(model)], overwrite=overwrite)
    num_read = 0
    for image in watched(images, "predicting, images"):
        try:
            mask = predict_mask(loaded, decode_image(image, loaded.in_channels))
        except UserError as error:
            broken.append(str(error))
            continue
        except OSError as error:
            broken.append(f"{image}: cannot be read ({error.strerror}); expected a readable file")
            continue
        num_read += 1
        if loaded.multilabel:
            for bit, label in enumerate(loaded.classes):
                write_mask(out / label / f"{image.stem}.png", (mask >> bit & 1) * np.uint8(255))
        else:
            write_mask(out / f"{image.stem}.png", mask)
    print(f"wrote {_describe(num_read, loaded, out)}")
    if broken:
        raise UserError(
            f"{len(broken)} of {num_read + len(broken)} images, links or folders could not be read:\n"
            + "\n".join(broken)
        )
