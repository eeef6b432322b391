"""Train a family of networks, compare its depths, keep one and predict with it; torch, numpy and Pillow are enough.

python examples/train_and_compare.py                      # nuclei drawn here: half a minute
python examples/train_and_compare.py --data /path/to/set  # images/ and masks/ of the same names, 0 is background
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import unetpp


def draw_pair(rng: np.random.Generator, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image (H, W, 3) uint8 of bright ellipses, and its mask (H, W) of 0 and 1."""
    mask = Image.new("L", (size, size))
    for _ in range(rng.integers(3, 8)):
        x, y, a, b = (*rng.uniform(0, size, 2), *rng.uniform(4, 9, 2))
        ImageDraw.Draw(mask).ellipse((x - a, y - b, x + a, y + b), fill=1)
    truth = np.array(mask)
    light = 70 + 60 * truth[..., None] + rng.normal(0, 20, (size, size, 3))
    return light.clip(0, 255).astype(np.uint8), truth


def read_pairs(folder: Path, size: int = 96) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs of a folder, resized to squares, so that they fit into a batch."""
    pairs = []
    for path in sorted((folder / "masks").iterdir()):
        (image,) = (folder / "images").glob(f"{path.stem}.*")
        mask = Image.open(path).convert("L").resize((size, size), Image.Resampling.NEAREST)
        pairs.append((np.array(Image.open(image).convert("RGB").resize((size, size))), np.array(mask) > 0))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with images/ and masks/")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("nuclei.safetensors"), help="the model file")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    pairs = read_pairs(arguments.data) if arguments.data else [draw_pair(rng) for _ in range(80)]
    pairs = [pairs[index] for index in rng.permutation(len(pairs))]
    val, test, train = pairs[: len(pairs) // 8], pairs[len(pairs) // 8 : len(pairs) // 4], pairs[len(pairs) // 4 :]

    network = unetpp.NestedUNet(widths=(8, 16, 32, 64))  # depth 3: heads L1, L2, L3
    trained = unetpp.fit(network, train, val, epochs=arguments.epochs)

    for depth in trained.depths:
        predictor = unetpp.Predictor(trained, depth=depth)
        began, scores = time.perf_counter(), []
        for image, mask in test:
            found = predictor.mask(image) > 0
            scores.append((found & (mask > 0)).sum() / max(1, (found | (mask > 0)).sum()))
        milliseconds = 1000 * (time.perf_counter() - began) / len(test)
        print(f"L{depth}: IoU {np.mean(scores):.3f}, {milliseconds:.1f} ms an image")

    trained.save(arguments.out)
    predictor = unetpp.Predictor(unetpp.load(arguments.out), depth=2)
    image, _ = test[0]
    Image.fromarray(unetpp.overlay(image, predictor.mask(image))).save(arguments.out.with_suffix(".png"))
    print(f"wrote {arguments.out} and an overlay, {arguments.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
