"""The evaluate stage: what each depth of the trained network scores on the test split, and what it costs.

    python -m pipelines.evaluate --prepared data/prepared --model models/train --out reports/evaluate

The only stage that reads the test split. Quality is a function of data and weights; latency, throughput and
memory are of this machine, on this day. What each number means: docs/measurements.md.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.core.command import run_command
from pipelines.core.delivery_sections import Evaluate
from pipelines.core.files import check_outputs, replacing, write_json
from pipelines.core.git import git_commit
from pipelines.core.params import load_params
from pipelines.core.tables import write_rows
from pipelines.evaluation.bootstrap import LEVEL, RESAMPLES
from pipelines.evaluation.decision import Decision, decide
from pipelines.evaluation.depth_costs import measure_devices
from pipelines.evaluation.depth_table import describe
from pipelines.evaluation.examples import find_extremes, pick, write_examples
from pipelines.evaluation.gates import check_gates
from pipelines.evaluation.predictor import Predictor
from pipelines.evaluation.quality import Quality, TrueObjects, choose_thresholds, measure_quality
from pipelines.evaluation.report_schema import Report
from pipelines.evaluation.scores import (
    by_class,
    by_kind,
    by_size,
    class_ious,
    image_rows,
    reliability_rows,
    resample,
    summarise,
)
from pipelines.evaluation.subject import Subject
from unetpp.data.resized import Resized
from unetpp.errors import UserError
from unetpp.images.frame import as_size, plain
from unetpp.scores import metrics
from unetpp.scores.calibration import reliability

FILES = ("report.json", "metrics.json", "depths.csv", "images.csv", "reliability.csv")


@dataclass(frozen=True)
class Measured:
    """What was measured of every depth, by name (L1, L2 ..., mean)."""

    devices: list[dict]  # the costs on each, the main one first
    quality: dict[str, Quality]
    true_objects: TrueObjects
    means: dict[str, dict[str, np.ndarray]]  # resampled, by score
    depths: dict[str, dict]  # scores and costs as flat numbers
    gates: dict[str, list[dict]]
    runtimes: list[dict]  # a row for each exported model


def measure(
    subject: Subject, predict: Predictor, settings: Evaluate, device: torch.device, exports: Path | None
) -> Measured:
    """Costs, scores with intervals, gates, and what the exports cost and score."""
    trained, split, batch = subject.trained, subject.split, settings.throughput_batch
    size = as_size(settings.latency_size_px) or as_size(subject.manifest.size) or (256, 256)
    # First, while the process is young: what lies in memory later slows it.
    devices = measure_devices(trained, settings, size, device)
    thresholds = choose_thresholds(predict, subject.open_val(), batch)
    quality, true_objects = measure_quality(predict, split, batch, settings.boundary_tolerance_px)
    means = resample(quality, subject.groups)
    scores = summarise(quality, means, thresholds, f"L{trained.depths[-1]}", trained.network.multilabel)
    depths = {name: row | devices[0]["depths"][name] for name, row in scores.items()}
    share = subject.manifest.foreground_share
    gates = check_gates(predict, Resized.of(split, subject.manifest), settings.gates, size, batch, share)
    runtimes = []
    if exports is not None:
        from pipelines.evaluation.runtime_scores import measure_runtimes  # late: they are extras

        ious = {name: metrics.per_image_iou(each.counts).numpy() for name, each in quality.items()}
        runtimes = measure_runtimes(exports, trained.sha256, subject.prepared, settings, size, ious)
    return Measured(devices, quality, true_objects, means, depths, gates, runtimes)


def make_report(
    subject: Subject, measured: Measured, decision: Decision, settings: Evaluate, samples: list[dict]
) -> dict:
    """What report.json holds (`report_schema.Report`)."""
    quality, kinds, classes = measured.quality, subject.split.kinds, subject.trained.classes
    limits = ("tolerance_iou", "max_latency_ms", "max_memory_mib", "max_parameters")
    result = {
        "schema": 2,
        "recommended_depth": decision.depth,
        "nearest_depth": decision.nearest,
        "recommendation": decision.sentence,
        "num_images": len(subject.split),
        "num_groups": len(set(subject.groups)),
        "leaks": subject.manifest.leaks,
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "over": "groups"},
        "decision": {name: getattr(settings, name) for name in limits} | {"candidates": decision.candidates},
        "depths": measured.depths,
        "groups": {
            "class": by_class(quality, classes),
            "size": by_size(quality, measured.true_objects, settings.object_sizes_px),
            "kind": by_kind(quality, kinds),
        },
        "reliability": {name: reliability(each.bins) for name, each in quality.items()},
        "gates": measured.gates,
        "runtimes": measured.runtimes,
        "samples": samples,
        "machine": measured.devices[0]["machine"],
        "devices": measured.devices,
        "test": {
            "sha256": subject.manifest.splits["test"].sha256,
            "kinds": subject.manifest.splits["test"].kinds,
        },
        "classes": class_ious(quality, classes),
        "background": subject.trained.network.background,
        "size_px": plain(subject.manifest.size),
        "multilabel": subject.trained.network.multilabel,
        "model_sha256": subject.trained.sha256,
    }
    Report.model_validate(result)  # what others read is what the schema says, or it is not written
    return result


def write_results(out: Path, result: dict, rows: list[dict]) -> None:
    """report.json and the tables; for `dvc metrics`, metrics.json with the few numbers that one compares."""
    depths = result["depths"]
    write_json(out / "report.json", result)
    compared = {
        key: {name: None if row[key] is None else round(row[key], 4) for name, row in depths.items()}
        for key in ("iou_image", "miou", "latency_ms")
    }
    write_json(out / "metrics.json", {"recommended_depth": result["recommended_depth"]} | compared)
    tables = {"depths": [{"depth": name} | row for name, row in depths.items()], "images": rows}
    for name, found in (tables | {"reliability": reliability_rows(result)}).items():
        write_rows(out / f"{name}.csv", found[0], found)


def find_provenance(subject: Subject) -> dict[str, object]:
    """What the numbers come from, by what the page calls it."""
    trained, commit, dirty = subject.trained, *git_commit(Path.cwd())
    return {
        "Test images (test.arrow), sha256": subject.manifest.splits["test"].sha256,
        "Raw data manifest, sha256": subject.manifest.raw_sha256,
        "Model file, sha256": trained.sha256,
        "Training run": trained.info.get("run"),
        "Epoch of the weights": trained.info.get("epoch"),
        "Params of the training": json.dumps(trained.info.get("params"), sort_keys=True),
        "Network": ", ".join(f"{key} {value}" for key, value in trained.network.config().items()),
        "Commit of the evaluating code": commit + (" with changed files" if dirty else ""),
    }


def evaluate(
    prepared: Path, model: Path, out: Path, settings: Evaluate, device: torch.device, exports: Path | None = None
) -> dict:
    """Measure every depth on the test split; write report.json, depths.csv, images.csv, reliability.csv,
    what the page shows (page/) and, for `dvc metrics`, metrics.json with the few numbers that one compares.

    Args:
        exports: folder of the export stage, whose models are measured by their own runtimes too.

    Returns:
        what report.json holds (`report_schema.Report`).

    Raises:
        UserError: a missing or damaged model or data, or ones that do not belong together.
    """
    subject = Subject.open(prepared, model)
    predict = Predictor(subject.trained, device)
    measured = measure(subject, predict, settings, device, exports)
    decision = decide(measured.depths, measured.means["iou_image"], settings)
    rows = image_rows(measured.quality, subject.split, subject.groups)
    # The images to show are ranked by what is deployed.
    shown = f"L{decision.depth or subject.trained.depths[-1]}"
    picked = pick(rows, shown, settings.page_images)
    samples = [{"rank": rank} | {key: rows[index][key] for key in ("id", "kind", "group")} for rank, index in picked]
    result = make_report(subject, measured, decision, settings, samples)
    page = {
        "report": result,
        "rows": rows,
        "samples": [{"rank": rank, "row": index} for rank, index in picked],
        "extremes": {name: find_extremes(rows, name) for name in measured.quality},
        "shown": shown,
        "rule": {name: getattr(settings, name) for name in ("tolerance_iou", "max_latency_ms")}
        | {"resamples": RESAMPLES},
        "provenance": find_provenance(subject),
    }
    with replacing(out / "page") as folder:
        folder.mkdir()
        write_json(folder / "page.json", page)
        write_examples(folder / "shown.npz", predict, subject.split, [index for _, index in picked])
        write_results(out, result, rows)  # last: where the disk has no space for the page, all stays as it was
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="unetpp stage evaluate", description="Measure every depth on the test split.")
    parser.add_argument("--prepared", type=Path, required=True, help="folder that the prepare stage wrote")
    parser.add_argument("--model", type=Path, required=True, help="folder that the train stage wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--exports", type=Path, help="folder that the export stage wrote, to measure its models too")
    arguments = parser.parse_args()
    params, out = load_params(), arguments.out
    inputs = [arguments.prepared, arguments.model, *([arguments.exports] if arguments.exports else [])]
    check_outputs([out / "page"], [out / name for name in FILES], inputs)
    if params.train.use_gpu and not torch.cuda.is_available():
        raise UserError(
            "train.use_gpu is true, and torch finds no CUDA device here: set it to false, or use a machine with a GPU"
        )
    device = torch.device("cuda" if params.train.use_gpu else "cpu")
    result = evaluate(arguments.prepared, arguments.model, out, params.evaluate, device, arguments.exports)
    print(describe(result))


if __name__ == "__main__":
    run_command(main)
