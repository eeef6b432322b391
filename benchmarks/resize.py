"""How well objects can be distinguished at a small size, by the geometry of resizing: no network, only thresholds.

    python -m benchmarks.resize --data /path/to/dsb2018 --out benchmarks/resize.md

For each fluorescence image, resized with its mask, the IoU of the best of 58 thresholds. A geometry that blurs rims,
or lays a mask beside its image, bounds what any network can reach.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.machine import describe, head
from pipelines.dataset.kinds import find_kind
from pipelines.dataset.layouts import find_samples
from unetpp.images.decode import decode_image, decode_mask
from unetpp.images.pixels import resize


def by(interpolation: int):
    return lambda image, size: cv2.resize(image, size, interpolation=interpolation)


# Of the image, and of the mask as a share of foreground.
GEOMETRIES = {
    "ours: bilinear, beyond four times after area": (resize, resize),
    "bilinear": (by(cv2.INTER_LINEAR), by(cv2.INTER_LINEAR)),
    "area": (by(cv2.INTER_AREA), by(cv2.INTER_AREA)),
    "bilinear, mask by OpenCV's nearest": (by(cv2.INTER_LINEAR), by(cv2.INTER_NEAREST)),
}


def best_iou(image: np.ndarray, mask: np.ndarray) -> float:
    """Of grey (H, W) and mask (H, W) bool."""
    thresholds = np.linspace(image.min(), image.max(), 60)[1:-1]
    hat = image[None] > thresholds[:, None, None]  # (T, H, W)
    return float(((hat & mask).sum(axis=(1, 2)) / np.maximum(1, (hat | mask).sum(axis=(1, 2)))).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--every", type=int, default=3, help="take every n-th image")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    size = (arguments.size, arguments.size)
    found: dict[str, list[float]] = {name: [] for name in GEOMETRIES}
    for sample in find_samples(arguments.data)[0][:: arguments.every]:
        image, mask = decode_image(sample.image, channels=3), decode_mask(sample.masks[0]) > 0
        if find_kind(image) != "fluorescence":
            continue
        grey = image.mean(axis=2, dtype=np.float32)
        for name, (of_image, of_mask) in GEOMETRIES.items():
            share = of_mask(mask.astype(np.float32), size)
            found[name].append(best_iou(of_image(grey, size), share >= 0.5))
    command = f"python -m benchmarks.resize --data dsb2018 --size {arguments.size} --every {arguments.every}"
    count = len(next(iter(found.values())))
    lines = [
        *head("Geometry of resizing", command, describe(peaks=[torch.float32])),
        f"{count} fluorescence images. No network: the best threshold of each image.",
        "",
        "| geometry of image and mask | mean IoU of the best threshold |",
        "| --- | ---: |",
        *(f"| {name} | {np.mean(ious):.4f} |" for name, ious in found.items()),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
