"""Which epoch of a training run to keep: rules by the curves of val, judged by the scores of test.

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
from benchmarks.machine import find_processor
from tests.own_data import MADE
from unetpp.data.resized import resize_sample
from unetpp.images.frame import Frame
from unetpp.models.segmenter import Segmenter
from unetpp.training.choice import EPOCHS, steady
from unetpp.training.loop import choose_precision, plain_batches, validate
from unetpp.training.pairs import Pairs

TOLERANCE = 0.01
WIDTHS = (8, 16, 32, 64, 128)
SETS = {
    "pets": 1,
    "camvid": 11,
    "dsb2018": 1,
    "kvasir": 1,
    "voc": 4,
    "membranes": 1,
}  # classes; the last three are drawn
IMAGES, MASKS = {"voc": "JPEGImages", "membranes": "image"}, {"voc": "SegmentationClass", "membranes": "label"}


def read_set(root: Path, name: str, size: int) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """The pairs of train, val and test at one size. Without a split, a tenth is val and a fifth is test, by number."""
    if name in MADE and not (root / name).exists():
        MADE[name](root / name)
    folder, found = root / name, {"train": [], "val": [], "test": []}
    if name == "camvid":
        files = [
            (split, path, folder / f"{split}annot" / f"{path.stem}.png")
            for split in found
            for path in sorted((folder / split).iterdir())
        ]
    else:
        of_masks = {path.stem: path for path in (folder / MASKS.get(name, "masks")).iterdir()}
        images = [path for path in sorted((folder / IMAGES.get(name, "images")).iterdir()) if path.stem in of_masks]
        splits = np.random.default_rng(0).permutation(len(images)) % 10
        names = ["test", "test", "val"] + ["train"] * 7
        files = [(names[part], path, of_masks[path.stem]) for part, path in zip(splits, images, strict=True)]
    for split, image, mask in files:
        pixels, truth = np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(mask))
        if name == "camvid":
            truth = np.where(truth == 11, 255, truth).astype(np.uint8)
        elif name == "pets":
            truth = np.array([1, 0, 255], np.uint8)[truth]
        elif name != "voc":
            truth = (truth > (127 if name == "kvasir" else 0)).astype(np.uint8)  # Kvasir's masks are JPEG
        found[split].append(resize_sample(pixels, truth, Frame((size, size)), SETS[name]))
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
        flips="all" if arguments.set in ("dsb2018", "membranes") else "none",
        quarter_turns=arguments.set in ("dsb2018", "membranes"),
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


def smooth(scores: np.ndarray) -> np.ndarray:
    """The mean of each epoch's score and of those just before it."""
    return np.array([scores[max(0, at - EPOCHS) : at].mean() for at in range(1, len(scores) + 1)])


def keep(scores: np.ndarray) -> int:
    """The epoch that `unetpp` keeps."""
    return int(np.argmax([steady(scores[:at].tolist()) for at in range(1, len(scores) + 1)]))


# From val IoU (epochs, depths) to the epoch that is kept.
RULES = {
    "mean of the heads": lambda val: val.mean(axis=1).argmax(),
    "deepest head": lambda val: val[:, -1].argmax(),
    "best head": lambda val: val.max(axis=1).argmax(),
    "mean of the heads, smoothed over 3 epochs": lambda val: smooth(val.mean(axis=1)).argmax(),
    "mean of the heads, the lower of itself and smoothed": lambda val: keep(val.mean(axis=1)),
    "deepest head, smoothed over 3 epochs": lambda val: smooth(val[:, -1]).argmax(),
    "last epoch": lambda val: len(val) - 1,
}


CONCLUSION = """\
No rule is best on all sets. On real images the rules differ by at most 0.3 points on average, because the learning rate
ends at zero and late epochs are much alike; on drawn images, with three or four for val, the differences are chance.
Rules that ask a single head lose 4 points of the mean of the depths on drawn images. The rule in use, the lower of
an epoch's own mean and the smoothed one, is level with the best on real images and takes no lucky epoch. With an EMA,
earlier epochs are better on pets, and every rule except the last epoch finds them."""


def judge(val: np.ndarray, test: np.ndarray) -> tuple[float, float, float]:
    """Test IoU of an epoch: at the depth that its val recommends, at the deepest, and the mean of all depths."""
    recommended = int((val >= val.max() - TOLERANCE).argmax())
    return test[recommended], test[-1], test.mean()


def report(arguments: argparse.Namespace) -> None:
    runs = [json.loads(path.read_text()) for path in sorted(arguments.curves.glob("*.json"))]
    processor, sets = find_processor()
    seeds = ", ".join(sorted({str(run["seed"]) for run in runs}))
    lines = [
        f"Measured by `python -m benchmarks.epochs train --set SET --seed SEED --epochs {runs[0]['epochs']} --size "
        f"{runs[0]['size']}` and `report`, on {processor} ({' '.join(sets)}), one thread.",
        "",
        "# Which epoch is kept",
        "",
        f"Widths {' '.join(map(str, WIDTHS))} on images of {runs[0]['size']}x{runs[0]['size']} px; seeds {seeds}. "
        "Test IoU per image, at the epoch that a rule takes by val alone: at the depth that val recommends there (the "
        f"smallest at most {TOLERANCE:g} below the best), at the deepest, and the mean of all depths; and how far the "
        "first of these lies below that of the epoch which test itself would take.",
    ]
    found: dict[str, np.ndarray] = {}  # by training, (rules, 4): `judge`'s three, and how far below the best
    for run in runs:
        val, test = (np.array([row[key] for row in run["rows"]]) for key in ("val", "test"))
        best = max(judge(*one)[0] for one in zip(val, test, strict=True))
        each = [judge(val[epoch], test[epoch]) for epoch in (int(rule(val)) for rule in RULES.values())]
        images = " / ".join(str(count) for count in run["num"].values())
        ema = f", EMA {run['ema']}" if run["ema"] else ""
        found[f"{run['set']}, seed {run['seed']}{ema} ({images})"] = np.array([(*one, best - one[0]) for one in each])
    lines += ["", "## Points below the best epoch, at the recommended depth", ""]
    lines += [f"| set, seed (images of train / val / test) | {' | '.join(RULES)} |", f"| --- |{' ---: |' * len(RULES)}"]
    lines += [f"| {name} | {' | '.join(f'{100 * one:.2f}' for one in each[:, 3])} |" for name, each in found.items()]
    lines += ["", "## Means over the sets", "", "Each set counts once; without EMA."]
    for title, chosen in (("real images", SETS.keys() - MADE.keys()), ("drawn images", MADE.keys())):
        of_sets = [
            np.mean([each for name, each in found.items() if name.startswith(f"{one},") and "EMA" not in name], axis=0)
            for one in sorted(chosen)
            if any(name.startswith(f"{one},") for name in found)
        ]
        if of_sets:
            lines += ["", f"| {title} | recommended depth | deepest | mean of depths | points below the best |"]
            lines += ["| --- | ---: | ---: | ---: | ---: |"]
            for name, means in zip(RULES, np.mean(of_sets, axis=0), strict=True):
                shown = " | ".join(f"{one:.4f}" for one in means[:3])
                lines.append(f"| {name} | {shown} | {100 * means[3]:.2f} |")
    lines += ["", CONCLUSION]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


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
    command = commands.add_parser("report")
    command.set_defaults(run=report)
    command.add_argument("--curves", type=Path, required=True)
    command.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
