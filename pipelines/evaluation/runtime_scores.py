"""What each exported depth scores and costs in each runtime: the rows of the report's table of runtimes."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from pipelines.console.progress import watched
from pipelines.evaluation.predictor import batches
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import read_manifest
from unetpp.engines.engine import Engine, missing
from unetpp.engines.runtimes import RUNTIMES, open_export
from unetpp.engines.torch_engine import TorchEngine
from unetpp.errors import UserError
from unetpp.images.frame import Size
from unetpp.inference.tiles import predict_resized, to_mask, to_own_size
from unetpp.models.listing import read_exports
from unetpp.models.model_file import load_model
from unetpp.network import profiling
from unetpp.scores import metrics

RUNTIMES_S = 30.0  # for the latencies of a depth, and as much for its batches, at most


def measure_runtimes(
    exports: Path, model_sha256: str | None, prepared: Path, settings: Any, size: Size, ious: Mapping[str, np.ndarray]
) -> list[dict]:
    """A row for each exported file in each runtime that is installed, on the processor; none for .pt2.

    A .pt2 runs the operators of safetensors in the same torch, and opening one takes longer than measuring it.

    Latencies are of one image, in rounds over all files of a depth and all runtimes, with as many threads each as
    torch has. IoU is over the test split, and its difference from the eager network's is paired: the mean over images
    of theirs less its own. An export is offered unless it loses more than the tolerance.

    Args:
        exports: folder that the export stage wrote.
        model_sha256: of the model file that they have to be made of.
        settings: evaluate's tolerance_iou, latency_rounds and throughput_batch.
        size: of the images that are timed.
        ious: iou_image of each test image in the split's order, by depth ("L1"), of the eager network.

    Raises:
        UserError: no exports, ones of another model or of other bytes than exports.json says, or of a depth that
            `ious` lacks.
    """
    entries = read_exports(exports, model_sha256)
    strange = sorted({one["depth"] for one in entries} - set(ious))
    if strange:
        raise UserError(
            f"{exports}: found exports of {', '.join(strange)}; expected some of {', '.join(ious)}, the depths of the "
            "network: run `dvc repro export`"
        )
    split, rows = Split(prepared / "test.arrow"), []
    channels = read_manifest(prepared).channels
    batch = torch.rand(settings.throughput_batch, channels, *size)
    for depth in sorted({one["depth"] for one in entries}, key=lambda name: int(name[1:])):
        trained = load_model(exports / depth)
        opened: dict[str, tuple[dict, str, Engine]] = {}
        for one in (each for each in entries if each["depth"] == depth and each["format"] != "pt2"):
            if one["format"] == "safetensors":
                opened["safetensors torch"] = one, "torch", TorchEngine(trained.segmenter(), trained.about)
                continue
            for runtime in (name for name in RUNTIMES if not missing(name)):
                engine = open_export(exports / one["file"], runtime, trained.about)
                opened[f"{one['format']} {runtime}"] = one, runtime, engine
        # Timed as modules are: what is called is all that the timing knows of them.
        timed = cast(Any, {name: _of_tensor(predict) for name, (_, _, predict) in opened.items()})

        rounds, where = settings.latency_rounds, f"{depth} in each runtime"
        latency = profiling.measure_latency(
            timed, batch[:1], rounds, watch=partial(watched, what=f"{where}, rounds"), max_s=RUNTIMES_S
        )
        together = profiling.measure_latency(
            timed, batch, rounds=5, warmup=1, watch=partial(watched, what=f"{where}, batches"), max_s=RUNTIMES_S
        )
        for name, (one, runtime, predict) in opened.items():
            found = image_ious(predict, split, settings.throughput_batch, f"{depth} in {name}, images")
            difference = float(np.mean(found - np.asarray(ious[depth])))  # below 0 is worse
            offered = -difference <= settings.tolerance_iou + 1e-12
            rows.append(
                {
                    "depth": depth,
                    "runtime": runtime,
                    "format": one["format"],
                    "precision": one["precision"],
                    "latency_ms": round(latency[name].median_ms, 3),
                    "latency_p95_ms": None if (p95 := latency[name].p95_ms) is None else round(p95, 3),
                    "images_per_s": round(len(batch) / together[name].median_ms * 1000, 2),
                    "size_mib": round(one["bytes"] / profiling.MIB, 3),
                    "iou_image": float(found.mean()),
                    "difference_iou": difference,
                    "offered": offered,
                    "why": _why(-difference, settings.tolerance_iou, offered),
                }
            )
    return rows


def image_ious(engine: Engine, split: Split, batch_size: int, what: str) -> np.ndarray:
    """iou_image of each image of a split at its own size, (N,), in its order; images of one size go together."""
    found, about = np.empty(len(split)), engine.about
    task = about.num_classes, about.multilabel, about.background
    for batch in batches(split, batch_size, what=what):
        seen = predict_resized(engine, batch.images)
        mask_hat = torch.from_numpy(to_mask(to_own_size(seen, batch.images[0].shape[:2]), about.multilabel))
        counts = metrics.confusion(mask_hat, batch.mask, *task)
        found[batch.indices] = metrics.per_image_iou(counts).numpy()
    return found


def _of_tensor(predict: Engine):
    return lambda image: predict(image.numpy())


def _why(difference: float, tolerance: float, offered: bool) -> str:
    verdict = f"{'within' if offered else 'more than'} the tolerance of {tolerance * 100:.2f}"
    if abs(difference) < 0.00005:
        return f"the IoU of the eager network, {verdict}"
    side = "below" if difference > 0 else "above"
    return f"{abs(difference) * 100:.2f} IoU points {side} the eager network, {verdict}"
