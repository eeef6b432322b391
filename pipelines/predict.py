"""`unetpp predict`: a mask for each image, by a trained model of this project or a registered one."""

import glob
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from pipelines.files import replacing
from unetpp.errors import UserError
from unetpp.images import SUFFIXES, decode_image, resize
from unetpp.inference import load_model, scale, to_mask

# Image (1, C, H, W) in [0, 1] to probabilities; channels; px that images were resized to for training, or None.
Loaded = tuple[Callable[[torch.Tensor], torch.Tensor], int, int | None]


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


def load(model: str, depth: int | None) -> Loaded:
    """A model from a folder or file of the train stage, or from MLflow by `models:/NAME@ALIAS`.

    Raises:
        UserError: no such model, or a depth that it does not have.
    """
    if not model.startswith("models:/"):
        trained = load_model(model)
        return trained.segmenter(depth), trained.network.in_channels, trained.size
    from pipelines.params import load_params
    from pipelines.tracking import load_segmenter

    if depth is not None:
        raise UserError(
            f"--depth {depth}: a registered version has one depth; name it by its alias, such as models:/NAME@L{depth}"
        )
    return load_segmenter(model, load_params().registry.tracking_uri)


def predict_mask(loaded: Loaded, image: np.ndarray) -> np.ndarray:
    """Mask (H, W) uint8 of an image (H, W, C) uint8, uint16 or float32: 0 and 255, or class indices.

    Where training resized whole images, so does this, by the same geometry; probabilities return to the image's size.
    """
    network, _, size = loaded
    height, width = image.shape[:2]
    resized = image if size is None else resize(image, size)
    with torch.inference_mode():
        probs = network(scale(resized).unsqueeze(0))  # (1, num_classes, h, w)
        probs = torch.nn.functional.interpolate(probs, (height, width), mode="bilinear", align_corners=False)
    mask = to_mask(probs)[0].numpy()
    return mask * np.uint8(255) if probs.shape[1] == 1 else mask


def predict(patterns: list[str], model: str, depth: int | None, out: Path) -> None:
    """Write `out/<image name>.png` for each image; a broken image is named and the others are done.

    Raises:
        UserError: no image, no model, two images of one name, or images that could not be read.
    """
    images = find_images(patterns)
    names = [image.stem for image in images]
    twice = sorted({str(image) for image in images if names.count(image.stem) > 1})
    if twice:
        raise UserError(
            f"images of the same name would overwrite each other's mask: {', '.join(twice[:6])}; predict them apart"
        )
    loaded = load(model, depth)
    broken = []
    for number, image in enumerate(images, start=1):
        try:
            mask = predict_mask(loaded, decode_image(image, loaded[1]))
        except UserError as error:
            broken.append(str(error))
            continue
        with replacing(out / f"{image.stem}.png") as partial:
            encoded, data = cv2.imencode(".png", mask)
            assert encoded
            partial.write_bytes(data.tobytes())
        if number % 100 == 0:
            print(f"{number} of {len(images)} images")
    print(f"wrote {len(images) - len(broken)} masks to {out}")
    if broken:
        raise UserError(f"{len(broken)} of {len(images)} images could not be read:\n" + "\n".join(broken))
