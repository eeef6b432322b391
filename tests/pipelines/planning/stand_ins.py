"""Small sets in the layouts of well-known ones: Kvasir-SEG, Pascal VOC, an electron-microscopy stack, and others."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.planning.class_tables import voc_colour


def photograph(rng: np.random.Generator, height: int, width: int, num_classes: int = 1) -> tuple:
    """(H, W, 3) with light from above and ellipses on a darker ground, and (H, W) of their classes from 1."""
    light = np.linspace(60, 0, height)[:, None, None]
    image = 80 + light + rng.normal(0, 12, (height, width, 3))
    mask = np.zeros((height, width), np.uint8)
    for number in rng.permutation(num_classes)[:2] + 1:
        centre = int(rng.uniform(0.3, 0.7) * width), int(rng.uniform(0.4, 0.7) * height)
        axes = int(rng.uniform(0.15, 0.25) * width), int(rng.uniform(0.15, 0.25) * height)
        inside = cv2.ellipse(np.zeros((height, width), np.uint8), centre, axes, 0, 0, 360, 1, -1)
        mask[inside > 0] = number
        image[inside > 0] += np.array([60, -20, 10 * number])
    return image.clip(0, 255).astype(np.uint8), mask


def membranes(rng: np.random.Generator, side: int) -> tuple:
    """(H, W) of cells with dark membranes between them, and (H, W) with 255 inside of cells, which are the majority."""
    points = rng.uniform(0, side, (side * side // 400, 2))
    y, x = np.mgrid[:side, :side]
    distances = np.sort([np.hypot(y - one, x - other) for one, other in points], axis=0)
    mask = np.where(distances[1] - distances[0] > 3, 255, 0).astype(np.uint8)
    image = np.where(mask > 0, 170, 70) + rng.normal(0, 15, mask.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def save(path: Path, pixels: np.ndarray, **options) -> None:
    """A picture file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def kvasir(root: Path, num: int = 24) -> Path:
    """images/x.jpg and masks/x.jpg, which compression has changed."""
    rng = np.random.default_rng(0)
    for number in range(num):
        image, mask = photograph(rng, 120 + 8 * (number % 3), 160)
        save(root / f"images/cju{number:03}.jpg", image)
        save(root / f"masks/cju{number:03}.jpg", mask * 255, quality=80)
    return root


def voc(root: Path, num: int = 24) -> Path:
    """JPEGImages/, palette masks in SegmentationClass/ with void around objects, lists of train and val."""
    rng = np.random.default_rng(0)
    ids = [f"2007_{number:06}" for number in range(num)]
    palette = [int(voc_colour(value)[at : at + 2], 16) for value in range(256) for at in (1, 3, 5)]
    for id in ids:
        image, mask = photograph(rng, 120, 160, 20)
        border = cv2.dilate(mask, np.ones((5, 5), np.uint8)) != cv2.erode(mask, np.ones((5, 5), np.uint8))
        mask[border] = 255
        save(root / f"JPEGImages/{id}.jpg", image)
        picture = Image.fromarray(mask, "P")
        picture.putpalette(palette)
        (root / "SegmentationClass").mkdir(exist_ok=True)
        picture.save(root / f"SegmentationClass/{id}.png")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(ids[: num * 2 // 3]) + "\n")
    (lists / "val.txt").write_text("\n".join(ids[num * 2 // 3 :]) + "\n")
    return root


def electrons(root: Path, num: int = 20) -> Path:
    """image/0.png and label/0.png, grey, foreground in the majority."""
    rng = np.random.default_rng(0)
    for number in range(num):
        image, mask = membranes(rng, 192)
        save(root / f"image/{number}.png", image)
        save(root / f"label/{number}.png", mask)
    return root


def masks_of(root: Path, draw: Callable[[np.random.Generator], np.ndarray], num: int = 16) -> list[tuple[Path, None]]:
    """Mask files, each drawn anew."""
    rng = np.random.default_rng(0)
    for number in range(num):
        save(root / f"{number}.png", draw(rng))
    return [(root / f"{number}.png", None) for number in range(num)]
