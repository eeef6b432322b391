"""Every installed engine at every depth: its costs on this machine, and its accuracy relative to eager fp32.

Accuracy is measured on val, from which `--engine auto` chooses, and on test, for the reader. It is the mean over images
of IoU minus that of eager fp32 on the same images. The work is limited by `VAL_IMAGES` and by time.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from pipelines.console.progress import watched
from pipelines.core.delivery_sections import Evaluate
from pipelines.evaluation.bootstrap import bootstrap, interval
from pipelines.evaluation.depth_costs import memory_of, of_tensor
from pipelines.evaluation.predictor import Predictor, batches
from pipelines.evaluation.quality import score_batch
from unetpp.data.arrow_split import Split
from unetpp.engines.engine import ENGINES, Engine
from unetpp.engines.family import Family, open_engine
from unetpp.engines.torch_engine import TorchEngine
from unetpp.errors import UserError
from unetpp.images.frame import Size
from unetpp.inference.instances import separate
from unetpp.inference.symmetric import COPIES, Symmetric
from unetpp.inference.tiles import predict_resized, to_mask, to_own_size
from unetpp.models.model_file import Trained
from unetpp.network import profiling

VAL_IMAGES = 200  # at most, spread evenly over the split
VAL_S, TEST_S = 10.0, 5.0  # seconds after which an engine gets no more images at a depth
LATENCY_S, BATCHES_S = 10.0, 5.0  # at most, for the latencies of all engines of a depth, and for their batches
TTA_S = 30.0  # like VAL_S, for the mean over copies
AT_ONCE = 16  # images between two looks at the clock
ROUNDING = 1e-9  # exactly the tolerance is inside it


@dataclass(frozen=True)
class Scored:
    """Images on which engines are scored, with the scores of eager fp32 on each, by depth ("L1" ...)."""

    split: Split
    order: list[int]  # indices; the first ones are also spread evenly
    ious: Mapping[str, np.ndarray]  # in that order
    aps: Mapping[str, np.ndarray]  # empty unless the network separates objects

    @classmethod
    def of_val(cls, predict: Predictor, val: Split, batch_size: int) -> "Scored":
        """At most VAL_IMAGES images of val, predicted by eager fp32."""
        order = spread(len(val), VAL_IMAGES)
        found = {name: np.full((len(val), 2), np.nan) for name in predict.names}
        for batch in batches(val, batch_size, order, what="val images, in fp32"):
            for answer in predict.answers(batch.images):
                mask_hat = to_mask(answer.probs.numpy(), *predict.task[:2])
                scores = score_batch(mask_hat, predict.numbers(answer), batch, val, predict.task)
                found[answer.name][batch.indices] = scores
        return cls.of(val, order, found)

    @classmethod
    def of_test(cls, test: Split, scores: Mapping[str, np.ndarray]) -> "Scored":
        """The test split with known IoU and AP, (N, 2) in its order; AP is nan unless the network separates objects."""
        return cls.of(test, spread(len(test), len(test)), scores)

    @classmethod
    def of(cls, split: Split, order: list[int], scores: Mapping[str, np.ndarray]) -> "Scored":
        ious, aps = ({name: each[order, column] for name, each in scores.items()} for column in (0, 1))
        return cls(split, order, ious, {name: each for name, each in aps.items() if not np.isnan(each).any()})


def spread(length: int, number: int) -> list[int]:
    """Up to `number` of `length` indices, in an order in which any first few are spread evenly."""
    chosen = np.unique(np.linspace(0, length - 1, min(number, length)).round().astype(int)).tolist()
    bits = max(1, (len(chosen) - 1).bit_length())
    return [chosen[place] for place in sorted(range(len(chosen)), key=lambda one: f"{one:0{bits}b}"[::-1])]


def open_engines(family: Family, depth: int, device: torch.device) -> tuple[dict[str, Engine], list[str]]:
    """All engines of a depth that are installed and have their file, and a sentence for each that fails to open."""
    found, left_out = {}, []
    for name in family.engines(depth):
        try:
            found[name] = open_engine(family, depth, name, device=device.type, threads=torch.get_num_threads())
        except UserError as error:
            left_out.append(f"L{depth} by {name}: {error}")
    return found, left_out


def measure_engines(
    family: Family,
    scored: Mapping[str, Scored],
    settings: Evaluate,
    size: Size,
    device: torch.device,
    sizes: Mapping[str, float],
) -> dict:
    """The section `engines` of report.json (`report_schema.Engines`): a row for each depth and engine.

    Latencies are for one image, in rounds over all engines of a depth.

    Args:
        scored: "val" and "test".
        size: size of the timed images.
        sizes: MiB of the model file pruned to each depth, by name.
    """
    rows, left_out = [], []
    about = family.about
    batch = torch.rand(settings.throughput_batch, about.in_channels, *size)
    for depth in about.depths:
        opened, problems = open_engines(family, depth, device)
        left_out += problems
        timed = cast(Any, {name: of_tensor(engine) for name, engine in opened.items()})
        latency = profiling.measure_latency(
            timed, batch[:1], settings.latency_rounds, watch=_watch(f"L{depth} by each engine"), max_s=LATENCY_S
        )
        together = profiling.measure_latency(
            timed, batch, rounds=5, warmup=1, watch=_watch(f"L{depth} by each engine, batches"), max_s=BATCHES_S
        )
        of_depth = []
        for name, engine in opened.items():
            row: dict = {"depth": f"L{depth}", "engine": name}
            entry = family.files.get((depth, ENGINES[name].format or ""))
            row |= {key: entry[key] if entry else None for key in ("file", "sha256")}
            row["latency_ms"] = round(latency[name].median_ms, 3)
            row["latency_p95_ms"] = None if (p95 := latency[name].p95_ms) is None else round(p95, 3)
            row["images_per_s"] = round(len(batch) / together[name].median_ms * 1000, 2)
            row["peak_memory_mib"] = memory_of(engine, batch[:1], device)
            row["size_mib"] = round(entry["bytes"] / profiling.MIB, 3) if entry else sizes[f"L{depth}"]
            try:
                row |= _score(engine, f"L{depth}", scored, settings)
            except UserError as error:  # an output of another shape
                left_out.append(f"L{depth} by {name}: {error}")
                continue
            cut = [part for part in scored if row[f"{part}_images"] < len(scored[part].order)]
            left_out += [
                f"L{depth} by {name}: only {row[f'{part}_images']} of {len(scored[part].order)} {part} images, because "
                f"of the limit of {VAL_S if part == 'val' else TEST_S:.0f} s"
                for part in cut
            ]
            of_depth.append(row)
        fastest = min((row for row in of_depth if row["within"]), key=lambda row: row["latency_ms"], default=None)
        rows += [row | {"auto": row is fastest} for row in of_depth]
    return {
        "tolerance_iou": settings.tolerance_engine_iou,
        "num_val_images": len(scored["val"].split),
        "val_images": len(scored["val"].order),
        "rows": rows,
        "left_out": left_out,
    }


def _watch(what: str) -> Callable[[range], Any]:
    return partial(watched, what=f"{what}, rounds")


def _score(engine: Engine, depth: str, scored: Mapping[str, Scored], settings: Evaluate) -> dict:
    """IoU and its difference on each split, and whether it is within the tolerance on val."""
    row: dict = {}
    for part, seconds in (("test", TEST_S), ("val", VAL_S)):
        images, what = scored[part], f"{depth} by {engine.name}, {part} images"
        found = image_scores(engine, images.split, images.order, settings.throughput_batch, what, seconds)
        row[f"{part}_images"] = len(found)
        for column, (key, short, known) in enumerate((("iou_image", "iou", images.ious), ("ap", "ap", images.aps))):
            if short == "ap" and depth not in known:
                continue
            differences = found[:, column] - known[depth][: len(found)]
            row[f"{part}_{key}"] = float(found[:, column].mean()) if len(found) else None
            row[f"{part}_difference_{short}"] = float(differences.mean()) if len(found) else None
    tolerances = {"IoU": ("iou", settings.tolerance_engine_iou), "AP": ("ap", settings.tolerance_ap)}
    judged = [
        _judge(name, row[f"val_difference_{short}"], tolerance)
        for name, (short, tolerance) in tolerances.items()
        if f"val_difference_{short}" in row
    ]
    return row | {"within": all(within for within, _ in judged), "why": "; ".join(why for _, why in judged)}


def image_scores(
    engine: Engine, split: Split, order: Sequence[int], batch_size: int, what: str, max_s: float | None = None
) -> np.ndarray:
    """(n, 2): iou_image of these images at their own sizes, in that order, and AP, or nan without separated objects.

    Images of one size are predicted together.

    Args:
        max_s: seconds after which the rest is left out.
    """
    found: list[np.ndarray] = []
    about, began = engine.about, time.monotonic()
    separation = about.separation()
    task = about.num_classes, about.multilabel, about.background
    done = iter(watched(range(len(order)), what))
    for start in range(0, len(order), AT_ONCE):
        some = order[start : start + AT_ONCE]
        if found and max_s is not None and time.monotonic() - began > max_s:
            break
        scores: dict[int, np.ndarray] = {}
        for batch in batches(split, batch_size, some):
            probs = to_own_size(predict_resized(engine, batch.images), batch.images[0].shape[:2])
            numbers = [separation and separate(one, task[0], separation, background=task[2]) for one in probs]
            found_here = score_batch(to_mask(probs, *task[:2]), numbers, batch, split, task)
            scores |= dict(zip(batch.indices, found_here, strict=True))
            for _ in batch.indices:
                next(done)
        found += [scores[index] for index in some]
    return np.array(found).reshape(-1, 2)


def _judge(name: str, difference: float | None, tolerance: float) -> tuple[bool, str]:
    """Whether a score on val is close enough to that of eager fp32, and the same in words."""
    if difference is None:
        return False, "val has no images"
    within = -difference <= tolerance + ROUNDING
    verdict = f"{'within' if within else 'more than'} the tolerance of {tolerance * 100:.2f}"
    if abs(difference) < 0.00005:
        return within, f"the same {name} as eager fp32, {verdict}"
    side = "below" if difference < 0 else "above"
    return within, f"{abs(difference) * 100:.2f} {name} points {side} eager fp32, {verdict}"


def estimate_s(
    pass_s: float, num_depths: int, num_val: int, num_test: int, formats: Collection[str], settings
) -> float:
    """An estimate of the seconds that `measure_engines` and `measure_tta` take here.

    Args:
        pass_s: seconds for one image at all depths, in eager torch.
        formats: formats of the exports.
        settings: section evaluate.
    """
    names = [name for name, kind in ENGINES.items() if kind.is_here and kind.format in (None, *formats)]
    passes = settings.latency_rounds + 5 * settings.throughput_batch
    val_s, copies = min(num_val, VAL_IMAGES) * pass_s, 0 if settings.tta == "none" else len(COPIES[settings.tta])
    timing_s = min(num_depths * (LATENCY_S + BATCHES_S), len(names) * passes * pass_s)
    images_s = min(num_depths * VAL_S, val_s) + min(num_depths * TEST_S, num_test * pass_s)
    return timing_s + len(names) * images_s + min(num_depths * TTA_S, copies * val_s)


def engines_json(engines: dict, model_sha256: str | None, val_sha256: str) -> dict:
    """The contents of engines.json, from which `--engine auto` chooses: the accuracy of each engine on val."""
    said = ("depth", "engine", "file", "sha256", "within")
    return {
        "format": 1,
        "model_sha256": model_sha256,
        "val_sha256": val_sha256,
        "tolerance_iou": engines["tolerance_iou"],
        "engines": [
            {key: row[key] for key in said}
            | {"iou_image": row["val_iou_image"], "difference_iou": row["val_difference_iou"]}
            for row in engines["rows"]
            if row["val_iou_image"] is not None
        ],
    }


def measure_tta(
    trained: Trained, val: Scored, groups: Sequence[str], settings: Evaluate, opened: Mapping[str, Engine], size: Size
) -> list[dict]:
    """A row per depth (`report_schema.Tta`): gain on val and cost of the mean over mirrored and turned copies.

    Args:
        groups: group of each val image.
        opened: by depth, the engine whose cost the decision uses.
    """
    if settings.tta == "none" or not val.order:
        return []
    rows, image = [], torch.rand(1, trained.network.in_channels, *size)
    for depth in trained.depths:
        name = f"L{depth}"
        eager = TorchEngine(trained.segmenter(depth), trained.about.at(depth))
        what = f"{name}, mean over copies, val images"
        copies = Symmetric(eager, settings.tta)
        found = image_scores(copies, val.split, val.order, settings.throughput_batch, what, TTA_S)[:, 0]
        plain = val.ious[name][: len(found)]
        gains = bootstrap({"gain": found - plain}, [groups[index] for index in val.order[: len(found)]])["gain"]
        low, high = interval(gains)
        timed = {"plain": of_tensor(opened[name]), "copies": of_tensor(Symmetric(opened[name], settings.tta))}
        latency = profiling.measure_latency(cast(Any, timed), image, 20, warmup=1, max_s=LATENCY_S)
        rows.append(
            {
                "depth": name,
                "copies": settings.tta,
                "num_images": len(found),
                "iou_image": float(found.mean()),
                "gain_iou": float(np.mean(found - plain)),
                "gain_iou_low": low,
                "gain_iou_high": high,
                "cost_factor": round(latency["copies"].median_ms / latency["plain"].median_ms, 2),
            }
        )
    return rows
