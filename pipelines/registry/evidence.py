"""What stands beside each version: report, scores of every image, overlays, exports, and SHA256SUMS of them all.

`mlflow artifacts download -u models:/NAME@champion/evidence` fetches it; `sha256sum -c SHA256SUMS` checks it.
"""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from pipelines.core.checksums import seal
from pipelines.evaluation.scored import read_depth
from unetpp.data.arrow_split import Split
from unetpp.errors import UserError
from unetpp.images.display import display, outline
from unetpp.inference.model_file import Trained
from unetpp.inference.predictor import Predictor
from unetpp.network.masks import IGNORE

COPIED = ("report.html", "report.json", "images.csv")
SIDE_PX = 512  # overlays are enlarged by whole factors up to about this
# Okabe and Ito's colours, told apart by colour-blind readers, as RGB.
TRUE, PREDICTED, BOTH = (213, 94, 0), (0, 114, 178), (255, 255, 255)


def gather(folder: Path, evaluation: Path, exports: Path | None, prepared: Path, trained: Trained, depth: int) -> None:
    """Fill an empty folder with the evidence of one depth."""
    for name in COPIED:
        if (evaluation / name).is_file():
            (folder / name).symlink_to((evaluation / name).absolute())
    for path in sorted((exports / f"L{depth}").rglob("*")) if exports else ():
        if path.is_file() and exports:
            link = folder / "exports" / path.relative_to(exports / f"L{depth}")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
    scored = read_depth(evaluation / "images.csv", depth)
    write_overlays(folder / "overlays", prepared / "test.arrow", trained, depth, scored.iou)
    seal(folder)


def write_overlays(folder: Path, test: Path, trained: Trained, depth: int, ious: Mapping[str, float]) -> None:
    """The best, the median and the worst test image as PNG: outlines of the true mask and of the predicted one."""
    order = sorted(ious, key=lambda id: (-ious[id], id))
    if not order:
        return
    split, predict = Split(test), Predictor(trained, depth).mask
    indices = {id: index for index, id in enumerate(split.ids)}
    folder.mkdir()
    for rank, id in {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}.items():
        if id not in indices:
            raise UserError(f"{test}: has no image {id!r}, which images.csv names: run `dvc repro evaluate`")
        image, mask = split[indices[id]]
        mask_hat = predict(image)
        known = np.where(np.asarray(mask) == IGNORE, 0, mask)
        drawn = draw(image, known, mask_hat)
        # Of the id alone what every file system takes: the rest of it may be a path.
        name = "".join(char if char.isalnum() or char in "-_." else "_" for char in id)[-60:]
        cv2.imwrite(str(folder / f"{rank}-{ious[id]:.3f}-{name}.png"), drawn[..., ::-1])


def draw(image: np.ndarray, mask: np.ndarray, mask_hat: np.ndarray) -> np.ndarray:
    """Outlines on an image (H, W, C), enlarged: orange of the true mask, blue of the predicted, white where both."""
    factor = max(1, SIDE_PX // max(mask.shape))
    base, mask, mask_hat = (each.repeat(factor, 0).repeat(factor, 1) for each in (display(image), mask, mask_hat))
    true, predicted = outline(mask), outline(mask_hat)
    base[true], base[predicted], base[true & predicted] = TRUE, PREDICTED, BOTH
    return base
