"""Which epoch of a training is to be kept: rules by the curves of val, judged by the scores of test.

    python -m benchmarks.epochs train --data ../shared/data --set pets --seed 0 --epochs 30 --out curves/
    python -m benchmarks.epochs report --curves curves/ --out benchmarks/epochs.md

`train` trains a network and notes IoU per image of val and test at each depth after each epoch; `report` applies the
rules to these curves. A rule sees val alone. It is judged by test, at the epoch that it takes: at the depth that val
would recommend there (the smallest at most 0.01 below the best), at the deepest, and by the mean of all depths.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import unetpp
from unetpp.data.resized import resize_sample
from unetpp.inference.segmenter import Segmenter
from unetpp.training.loop import choose_precision, plain_batches, validate
from unetpp.training.pairs import Pairs

TOLERANCE = 0.01
WIDTHS = (8, 16, 32, 64, 128)
SETS = {"pets": 1, "camvid": 11, "dsb2018": 1}  # classes


def read_set(root: Path, name: str, size: int) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """The pairs of train, val and test at one size. Without a split, a tenth is val and a fifth is test, by number."""
    folder, found = root / name, {"train": [], "val": [], "test": []}
    if name == "camvid":
        files = [
            (split, path, folder / f"{split}annot" / f"{path.stem}.png")
            for split in found
            for path in sorted((folder / split).iterdir())
        ]
    else:
        images = sorted((folder / "images").iterdir())
        splits = np.random.default_rng(0).permutation(len(images)) % 10
        names = ["test", "test", "val"] + ["train"] * 7
        files = [
            (names[part], path, folder / "masks" / f"{path.stem}.png")
            for part, path in zip(splits, images, strict=True)
        ]
    for split, image, mask in files:
        pixels, truth = np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(mask))
        if name == "camvid":
            truth = np.where(truth == 11, 255, truth).astype(np.uint8)
        elif name == "pets":
            truth = np.array([1, 0, 255], np.uint8)[truth]
        else:
            truth = (truth > 0).astype(np.uint8)
        found[split].append(resize_sample(pixels, truth, size, SETS[name]))
    return found


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    began, classes = time.monotonic(), SETS[arguments.set]
    data = read_set(arguments.data, arguments.set, arguments.size)
    torch.manual_seed(arguments.seed)
    network = unetpp.NestedUNet(WIDTHS, 3, classes)
    test, rows = Pairs(data["test"], network, "test"), []
    dtype = choose_precision("auto", torch.device("cpu"))

    def note(epoch: unetpp.Epoch) -> None:
        sums = validate(Segmenter(epoch.network), plain_batches(test, range(len(test)), 8), dtype)
        scores = (sums[:-1, 1] / sums[-1, 1]).tolist()
        rows.append({"val": list(epoch.val_iou.values()), "test": scores, "loss": epoch.loss})
        print(
            epoch, "| test", " ".join(f"{one:.3f}" for one in scores), f"| {time.monotonic() - began:.0f} s", flush=True
        )

    unetpp.fit(
        network,
        data["train"],
        data["val"],
        epochs=arguments.epochs,
        seed=arguments.seed,
        ema=arguments.ema,
        flips=arguments.set == "dsb2018",
        after_epoch=note,
    )
    facts = {
        "set": arguments.set,
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "ema": arguments.ema,
        "size": arguments.size,
    }
    facts |= {"num": {split: len(pairs) for split, pairs in data.items()}, "seconds": round(time.monotonic() - began)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    ema = "" if arguments.ema is None else "-ema"
    path = arguments.out / f"{arguments.set}{ema}-{arguments.seed}.json"
    path.write_text(json.dumps(facts | {"rows": rows}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.set_defaults(run=train)
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--set", choices=SETS, required=True)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--epochs", type=int, default=30)
    command.add_argument("--ema", type=float)
    command.add_argument("--size", type=int, default=96)
    command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
