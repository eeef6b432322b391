"""What is stored with each version: its exports and their measurements, in its own folder, and its evidence.

Evidence consists of the report, the scores of every image, overlays, and SHA256SUMS of all these files.
`mlflow artifacts download -u models:/NAME@champion/evidence` fetches it; `sha256sum -c SHA256SUMS` checks it.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import cv2
import numpy as np

from pipelines.core.checksums import seal
from pipelines.core.files import write_json
from pipelines.evaluation.scored import read_depth
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import Manifest, read_manifest
from unetpp.errors import UserError
from unetpp.files import read_json, sha256
from unetpp.images.display import ERRORS, SAID, class_colour, display, error_map, fill, fill_classes
from unetpp.inference.predictor import Predictor
from unetpp.models.listing import AGAIN, LISTING
from unetpp.models.model_file import MODEL, Trained
from unetpp.network.masks import IGNORE, find_classes

COPIED = ("report.html", "report.json", "images.csv")
ENGINES = "engines.json"  # of stage evaluate
CARRIED = ("onnx", "onnx-int8")  # formats of exports
SIDE_PX = 512  # overlays are enlarged by whole factors up to about this


def find_carried(exports: Path | None, depth: int) -> list[dict]:
    """The entries of exports.json that a version of this depth carries: ONNX of this depth and the shallower ones.

    A .pt2 file could run code of whoever wrote it, and safetensors would repeat the version's own weights: neither is
    carried.
    """
    listed = [] if exports is None else read_json(exports / LISTING, AGAIN, ("exports",))["exports"]
    return [one for one in listed if one.get("format") in CARRIED and int(one["depth"][1:]) <= depth]


def carry(folder: Path, exports: Path | None, measured: Path | None, depth: int) -> None:
    """Add exports, exports.json and engines.json to the folder of a version; both files name its own model file.

    Args:
        folder: contains the version's model.safetensors.
        exports: folder of the export stage.
        measured: engines.json of the evaluate stage, if it wrote one.
    """
    own = {"model_sha256": sha256(folder / MODEL)}
    carried = find_carried(exports, depth)
    for one in carried:
        assert exports is not None
        link = folder / "exports" / one["file"]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((exports / one["file"]).absolute())
    if exports is not None and carried:
        listing = read_json(exports / LISTING, AGAIN, ("exports",))
        write_json(folder / "exports" / LISTING, listing | own | {"exports": carried})
    if measured is not None and measured.is_file():
        found = read_json(measured, "run `dvc repro evaluate`", ("engines",))
        files = {None, *(one["file"] for one in carried)}
        rows = [one for one in found["engines"] if int(one["depth"][1:]) <= depth and one["file"] in files]
        write_json(folder / ENGINES, found | own | {"engines": rows})


def gather(folder: Path, evaluation: Path, prepared: Path, trained: Trained, depth: int) -> None:
    """Fill an empty folder with the evidence of one depth."""
    for name in COPIED:
        if (evaluation / name).is_file():
            (folder / name).symlink_to((evaluation / name).absolute())
    scored = read_depth(evaluation / "images.csv", depth)
    write_overlays(folder / "overlays", prepared, trained, depth, scored.iou)
    seal(folder)


def write_overlays(folder: Path, prepared: Path, trained: Trained, depth: int, ious: Mapping[str, float]) -> None:
    """Write the best, the median and the worst test image as PNG, and legend.svg, which explains the colours."""
    order = sorted(ious, key=lambda id: (-ious[id], id))
    if not order:
        return
    test, manifest = prepared / "test.arrow", read_manifest(prepared)
    split, predict = Split(test), Predictor(trained, depth).mask
    indices = {id: index for index, id in enumerate(split.ids)}
    folder.mkdir()
    (folder / "legend.svg").write_text(legend(manifest, trained.classes), encoding="utf-8")
    for rank, id in {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}.items():
        if id not in indices:
            raise UserError(f"{test}: found no image {id!r}, which images.csv names: run `dvc repro evaluate`")
        image, mask = split[indices[id]]
        drawn = draw(image, mask, predict(image), manifest)
        # Only characters that every file system accepts: an id may be a path.
        name = "".join(char if char.isalnum() or char in "-_." else "_" for char in id)[-60:]
        cv2.imwrite(str(folder / f"{rank}-{ious[id]:.3f}-{name}.png"), drawn[..., ::-1])


def draw(image: np.ndarray, mask: np.ndarray, mask_hat: np.ndarray, manifest: Manifest) -> np.ndarray:
    """An enlarged image (H, W, C) with its errors; for several classes, the true mask left of the predicted one.

    Areas are filled with the colours of the pages (`legend`).
    """
    factor = max(1, SIDE_PX // max(mask.shape))
    base, mask, mask_hat = (each.repeat(factor, 0).repeat(factor, 1) for each in (display(image), mask, mask_hat))
    if manifest.num_classes == 1:
        errors = error_map(mask, mask_hat, mask != IGNORE)
        return fill(base, ((colour, errors == code) for code, colour in enumerate(ERRORS.values())))
    meaning = manifest.multilabel, manifest.background
    gap = np.full((len(base), 8, 3), 255, np.uint8)
    true, predicted = (fill_classes(base, find_classes(one, *meaning)) for one in (mask, mask_hat))
    return np.concatenate([true, gap, predicted], axis=1)


def legend(manifest: Manifest, classes: list[str]) -> str:
    """The legend of the overlays' colours, as SVG."""
    if manifest.num_classes == 1:
        title = "pixels by outcome"
        rows = [(ERRORS[name][:3], what) for name, what in SAID.items() if name != "confused"]
    else:
        title = "left: the true mask; right: the predicted mask"
        rows = [(class_colour(number), name) for number, name in enumerate(classes, int(manifest.background))]
    lines = [f'<text x="8" y="20">{title}</text>']
    for place, ((red, green, blue), name) in enumerate(rows, 1):
        lines.append(f'<rect x="8" y="{24 * place + 8}" width="24" height="16" fill="rgb({red},{green},{blue})"/>')
        lines.append(f'<text x="40" y="{24 * place + 21}">{escape(name)}</text>')
    size = f'width="480" height="{24 * len(rows) + 40}" font-family="sans-serif" font-size="14"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(lines)}</svg>\n'
