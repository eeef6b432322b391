"""The evaluate stage: scores of each depth of the trained network on the test split, and its costs.

    python -m pipelines.evaluate --prepared data/prepared --model models/train --out reports/evaluate

It is the only stage that reads the test split. Quality is a function of data and weights; latency, throughput and
memory depend on the machine and its load. docs/measurements.md explains each number.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.core.command import run_command
from pipelines.core.files import replacing, write_json
from pipelines.core.git import git_commit
from pipelines.core.outputs import check_outputs
from pipelines.core.params import load_params
from pipelines.core.sections.delivery import Evaluate
from pipelines.core.tables import write_rows
from pipelines.evaluation.bootstrap import LEVEL, RESAMPLES
from pipelines.evaluation.cautions import says_objects
from pipelines.evaluation.decision import Decision, compare_with_masks, decide
from pipelines.evaluation.depth_costs import measure_devices, open_depths
from pipelines.evaluation.engine_scores import Scored, engines_json, measure_engines, measure_tta
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
from pipelines.evaluation.subject import Subject, read_groups
from unetpp.data.resized import Resized
from unetpp.engines.engine import ENGINES
from unetpp.engines.family import Family
from unetpp.errors import UserError, to_install
from unetpp.images.frame import as_size, plain
from unetpp.models.listing import read_exports
from unetpp.scores.calibration import reliability

FILES = ("report.json", "engines.json", "metrics.json", "depths.csv", "images.csv", "reliability.csv")
COMPARED = ("iou_image", "iou_image_low", "iou_image_high", "miou", "latency_ms", "peak_memory_mib")


@dataclass(frozen=True)
class Measured:
    """The measurements of every depth, by name (L1, L2 ..., mean)."""

    devices: list[dict]  # the costs on each, the main one first
    quality: dict[str, Quality]
    true_objects: TrueObjects
    means: dict[str, dict[str, np.ndarray]]  # resampled, by score
    depths: dict[str, dict]  # scores and costs as flat numbers
    gates: dict[str, list[dict]]
    engines: dict  # see `report_schema.Engines`
    tta: list[dict]


def check_engine(family: Family, settings: Evaluate) -> None:
    """Refuse an `evaluate.engine` whose costs cannot be measured, before any long work.

    Raises:
        UserError: it is not installed, or has no exports of this model; or its memory is limited but not reported.
    """
    name = settings.engine
    if settings.max_memory_mib is not None and ENGINES[name].runtime != "torch":
        raise UserError(
            f"evaluate.max_memory_mib: found {settings.max_memory_mib:g}, but {name} (evaluate.engine) does not report "
            "its memory: set evaluate.max_memory_mib to null, or evaluate.engine to torch"
        )
    for depth in family.about.depths:
        if name not in (known := family.engines(depth)):
            raise UserError(
                f"evaluate.engine: found {name}, which is not installed or has no export of L{depth}; expected one of "
                f"{', '.join(known)}: {to_install('exports')} installs the runtimes, and `dvc repro export` "
                "with onnx and onnx-int8 in export.formats writes the files; or set evaluate.engine to torch"
            )


def measure(
    subject: Subject, predict: Predictor, settings: Evaluate, device: torch.device, exports: Path | None
) -> Measured:
    """Measure costs, scores with intervals, gates, and the costs and scores of each engine."""
    trained, split, batch = subject.trained, subject.split, settings.throughput_batch
    if exports is not None:
        read_exports(exports, trained.sha256)
    family = Family(trained.about, trained, exports)
    check_engine(family, settings)
    size = as_size(settings.latency_size_px) or as_size(subject.manifest.size) or (256, 256)
    # First, in a new process: memory that is allocated later slows it down.
    devices = measure_devices(trained, settings, size, device, exports)
    costs = devices[0]["depths"]
    thresholds = choose_thresholds(predict, subject.open_val(), batch)
    quality, true_objects = measure_quality(predict, split, batch, settings.boundary_tolerance_px)
    means = resample(quality, subject.groups)
    scores = summarise(quality, means, thresholds, f"L{trained.depths[-1]}", trained.network.multilabel)
    depths = {name: row | costs[name] for name, row in scores.items()}
    share = subject.manifest.foreground_share
    gates = check_gates(predict, Resized.of(split, subject.manifest), settings.gates, size, batch, share)
    scored_test = {name: _columns(each, predict) for name, each in quality.items()}
    scored = {"val": Scored.of_val(predict, subject.open_val(), batch), "test": Scored.of_test(split, scored_test)}
    sizes = {name: row["size_mib"] for name, row in costs.items()}
    engines = measure_engines(family, scored, settings, size, device, sizes)
    tta = []
    if settings.tta != "none":
        groups = read_groups(subject.prepared, subject.open_val().ids)
        opened = open_depths(trained, settings.engine, device, exports)
        tta = measure_tta(trained, scored["val"], groups, settings, opened, size)
    return Measured(devices, quality, true_objects, means, depths, gates, engines, tta)


def _columns(quality: Quality, predict: Predictor) -> np.ndarray:
    """(N, 2): IoU of each image, and AP if the network separates objects, else nan."""
    images = quality.per_image()
    unknown = np.full(len(images["iou_image"]), np.nan)
    separated = predict.trained.about.separation() is not None
    return np.stack([images["iou_image"], images["dsb_ap"] if separated else unknown], axis=1)


def make_report(
    subject: Subject, measured: Measured, decision: Decision, settings: Evaluate, samples: list[dict]
) -> dict:
    """The contents of report.json (`report_schema.Report`)."""
    quality, kinds, classes = measured.quality, subject.split.kinds, subject.trained.classes
    limits = ("tolerance_iou", "tolerance_ap", "max_latency_ms", "max_memory_mib", "max_parameters", "engine")
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
        "engines": measured.engines,
        "tta": measured.tta,
        "objects": describe_objects(subject, measured),
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
    Report.model_validate(result)  # a report that does not match the schema is not written
    return result


def describe_objects(subject: Subject, measured: Measured) -> dict:
    """Which objects are compared, and whether depths differ more for objects than for masks (`report_schema`)."""
    ways, separated = measured.true_objects.ways, subject.trained.about.separation() is not None
    found = {
        "true": "both" if len(ways) > 1 else next(iter(ways), "components"),
        "predicted": "watershed" if separated else "components",
    }
    remark = compare_with_masks(measured.depths, measured.means) if says_objects({"objects": found}) else ""
    return found | {"remark": remark}


def write_results(out: Path, result: dict, rows: list[dict]) -> None:
    """Write report.json, the tables, and metrics.json for `dvc metrics` and `dvc exp show`.

    metrics.json has the few numbers to compare, for the recommended depth, else the nearest or the deepest one.
    """
    depths = result["depths"]
    write_json(out / "report.json", result)
    depth = result["recommended_depth"] or result["nearest_depth"]
    row = depths[f"L{depth}"] if depth else [row for name, row in depths.items() if name != "mean"][-1]
    keys = (*COMPARED, *["dsb_ap"] * says_objects(result))
    few = {key: round(row[key], 4) for key in keys if row.get(key) is not None}
    write_json(out / "metrics.json", {"recommended_depth": result["recommended_depth"]} | few)
    tables = {"depths": [{"depth": name} | row for name, row in depths.items()], "images": rows}
    for name, found in (tables | {"reliability": reliability_rows(result)}).items():
        write_rows(out / f"{name}.csv", found[0], found)


def find_provenance(subject: Subject) -> dict[str, object]:
    """The origin of the numbers, by the names on the page."""
    trained, commit, dirty = subject.trained, *git_commit(Path.cwd())
    begun = trained.info.get("encoder_weights")
    return {
        "Test images (test.arrow), sha256": subject.manifest.splits["test"].sha256,
        "Raw data manifest, sha256": subject.manifest.raw_sha256,
        "Model file, sha256": trained.sha256,
        "Training run": trained.info.get("run"),
        "Epoch of the weights": trained.info.get("kept", trained.info.get("epoch")),
        "Params of the training run": json.dumps(trained.info.get("params"), sort_keys=True),
        "Network": ", ".join(f"{key} {value}" for key, value in trained.network.config().items()),
        "Initial weights of the encoder": begun and f"{begun['uri']}, sha256 {begun['sha256']}",
        "Commit of the code that evaluated": commit + (" with uncommitted changes" if dirty else ""),
    }


def evaluate(
    prepared: Path, model: Path, out: Path, settings: Evaluate, device: torch.device, exports: Path | None = None
) -> dict:
    """Measure every depth on the test split, and write FILES and the contents of the page (page/) into `out`.

    Args:
        exports: folder of the export stage; its files are measured with the engines installed for them.

    Returns:
        the contents of report.json (`report_schema.Report`).

    Raises:
        UserError: model or data are missing or damaged, or do not belong together.
    """
    subject = Subject.open(prepared, model)
    predict = Predictor(subject.trained, device)
    measured = measure(subject, predict, settings, device, exports)
    separated = subject.trained.about.separation() is not None
    decision = decide(measured.depths, measured.means, settings, separated)
    rows = image_rows(measured.quality, subject.split, subject.groups)
    # Images are ranked by the depth to deploy.
    shown = f"L{decision.depth or subject.trained.depths[-1]}"
    picked = pick(rows, shown, settings.page_images)
    samples = [
        {"rank": rank} | {key: rows[index].get(key, "") for key in ("id", "kind", "group")} for rank, index in picked
    ]
    result = make_report(subject, measured, decision, settings, samples)
    page = {
        "report": result,
        "rows": rows,
        "samples": [{"rank": rank, "row": index} for rank, index in picked],
        "extremes": {name: find_extremes(rows, name) for name in measured.quality},
        "shown": shown,
        "rule": {name: getattr(settings, name) for name in ("tolerance_iou", "tolerance_ap", "max_latency_ms")}
        | {"resamples": RESAMPLES},
        "provenance": find_provenance(subject),
    }
    with replacing(out / "page") as folder:
        folder.mkdir()
        write_json(folder / "page.json", page)
        write_examples(folder / "shown.npz", predict, subject.split, [index for _, index in picked])
        manifest = subject.manifest
        val = manifest.val_full_sha256 or manifest.splits["val"].sha256
        write_json(out / "engines.json", engines_json(measured.engines, subject.trained.sha256, val))
        write_results(out, result, rows)  # last: if the disk is too full for the page, nothing changes
    return result


def choose_device(use_gpu: bool) -> torch.device:
    """Where the costs that decide are measured. The GPU may be the cluster's, on which stage train ran."""
    if use_gpu and not torch.cuda.is_available():
        print("evaluate: train.use_gpu is true, and this machine has no GPU: latency and memory are those of its CPU")
        return torch.device("cpu")
    return torch.device("cuda" if use_gpu else "cpu")


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
    device = choose_device(params.train.use_gpu)
    result = evaluate(arguments.prepared, arguments.model, out, params.evaluate, device, arguments.exports)
    ious = ", ".join(f"{name} {row['iou_image']:.3f}" for name, row in result["depths"].items())
    chosen = f"L{result['recommended_depth']}" if result["recommended_depth"] else "no depth"
    print(f"evaluate: IoU on {result['num_images']} test images: {ious}; {chosen} is recommended")


if __name__ == "__main__":
    run_command(main)
