"""The evaluate stage: what each depth of the trained network scores on the test split, and what it costs.

    python -m pipelines.evaluate --prepared data/prepared --model models/train --out reports/evaluate

The only stage that reads the test split. Quality is a function of data and weights; latency, throughput and
memory are of this machine, on this day. What each number means: docs/measurements.md.
"""

import argparse
import csv
import json
from math import isnan
from pathlib import Path

import numpy as np
import torch

from pipelines.core.checksums import sha256
from pipelines.core.command import run_command
from pipelines.core.delivery_sections import Evaluate
from pipelines.core.files import replacing, write_json
from pipelines.core.git import git_commit
from pipelines.core.params import load_params
from pipelines.evaluation.bootstrap import LEVEL, RESAMPLES
from pipelines.evaluation.decision import Decision, decide
from pipelines.evaluation.depth_costs import describe_machine, measure_cost
from pipelines.evaluation.depth_table import describe
from pipelines.evaluation.examples import find_extremes, pick
from pipelines.evaluation.gates import check_gates
from pipelines.evaluation.predictor import Predictor
from pipelines.evaluation.quality import Quality, choose_thresholds, measure_quality
from pipelines.evaluation.report_schema import Report
from pipelines.evaluation.scores import by_class, by_kind, by_size, image_rows, resample, summarise
from pipelines.pages import depth_page
from unetpp.data.arrow_split import Split, read_manifest
from unetpp.errors import UserError
from unetpp.inference.model_file import Trained, load_model
from unetpp.scores import metrics
from unetpp.scores.calibration import reliability


def read_groups(prepared: Path, ids: list[str]) -> list[str]:
    """The group of each image, from split.csv of a prepared folder.

    Raises:
        UserError: no such file, or one without these images.
    """
    path = prepared / "split.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            groups = {row["id"]: row["group"] for row in csv.DictReader(file)}
        return [groups[id] for id in ids]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected the groups of the images: run `dvc repro prepare`") from None
    except KeyError as error:
        raise UserError(
            f"{path}: found no column or image {error}; expected a row for each image of test.arrow with the columns "
            "id and group: run `dvc repro prepare`"
        ) from None


def _check(trained: Trained, manifest: dict, prepared: Path, model: Path, digest: str) -> None:
    network = trained.network
    found = {name: getattr(network, name) for name in ("num_classes", "multilabel")} | {"channels": network.in_channels}
    for key, value in found.items():
        if manifest[key] != value:
            raise UserError(
                f"{model}: found a network of {key} {value}; expected {manifest[key]}, "
                f"as in {prepared}/manifest.json: train again on these data"
            )
    if digest != manifest["splits"]["test"]["sha256"]:
        raise UserError(
            f"{prepared}/test.arrow: found sha256 {digest[:12]}; expected "
            f"{manifest['splits']['test']['sha256'][:12]}, as in manifest.json: run the prepare stage again"
        )


def _write_csv(path: Path, rows: list[dict]) -> None:
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _measure_devices(trained: Trained, settings: Evaluate, size_px: int, main: torch.device) -> list[dict]:
    """The costs on each device present, the main one first."""
    present = [main.type] + [one for one in ("cuda", "cpu") if one != main.type and _is_present(one)]
    devices = []
    for kind in present:
        device = torch.device(kind)
        costs = measure_cost(trained, size_px, settings.latency_rounds, settings.throughput_batch, device)
        spread = float(np.median([row["latency_spread"] for row in costs.values()]))
        reading = {
            "size_px": size_px,
            "latency_rounds": settings.latency_rounds,
            "throughput_batch": settings.throughput_batch,
            "spread": round(spread, 3),
        }
        machine = describe_machine(device) | reading
        devices.append({"device": kind, "main": kind == main.type, "machine": machine, "depths": costs})
    return devices


def _is_present(kind: str) -> bool:
    return kind == "cpu" or torch.cuda.is_available()


def _classes(quality: dict[str, Quality], names: list[str]) -> dict[str, dict[str, float | None]]:
    """IoU of each class by name; None for a class that is in no test image and that no depth finds."""
    return {
        name: {
            one: None if isnan(iou) else iou for one, iou in zip(names, metrics.per_class_iou(each.counts), strict=True)
        }
        for name, each in quality.items()
    }


def evaluate(
    prepared: Path, model: Path, out: Path, settings: Evaluate, device: torch.device, exports: Path | None = None
) -> dict:
    """Measure every depth on the test split; write report.json, depths.csv, images.csv, report.html
    and, for `dvc metrics`, metrics.json with the few numbers that one compares between runs.

    Args:
        exports: folder of the export stage, whose models are measured by their own runtimes too.

    Returns:
        what report.json holds (`report_schema.Report`).

    Raises:
        UserError: a missing or damaged model or data, or ones that do not belong together.
    """
    trained = load_model(model)
    manifest = read_manifest(prepared)
    digest = sha256(prepared / "test.arrow")
    _check(trained, manifest, prepared, model, digest)
    split = Split(prepared / "test.arrow")
    if len(split) == 0:
        raise UserError(f"{prepared}/test.arrow: found no image; raise prepare.shares.test, or bring more images")
    groups = read_groups(prepared, split.ids)
    size_px = settings.latency_size_px or manifest["size"] or 256
    # First, while the process is young: what lies in memory later slows it.
    devices = _measure_devices(trained, settings, size_px, device)

    predict = Predictor(trained, device)
    batch = settings.throughput_batch
    thresholds = choose_thresholds(predict, Split(prepared / "val.arrow"), batch)
    quality, true_objects = measure_quality(predict, split, batch, settings.boundary_tolerance_px)
    means = resample(quality, groups)
    deepest = f"L{trained.depths[-1]}"
    scores = summarise(quality, means, thresholds, deepest)
    depths = {name: row | devices[0]["depths"][name] for name, row in scores.items()}
    decision = decide(depths, means["iou_image"], settings)
    rows = image_rows(quality, split.ids, split.kinds, groups)
    shown = f"L{decision.depth}" if decision.depth else deepest  # the images to show are ranked by what is deployed
    picked = pick(rows, shown, settings.page_images)
    result = {
        "schema": 2,
        "recommended_depth": decision.depth,
        "nearest_depth": decision.nearest,
        "recommendation": decision.sentence,
        "num_images": len(split),
        "num_groups": len(set(groups)),
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "over": "groups"},
        "decision": _rule(settings, decision),
        "depths": depths,
        "groups": {
            "class": by_class(quality, trained.classes),
            "size": by_size(quality, true_objects, settings.object_sizes_px),
            "kind": by_kind(quality, split.kinds),
        },
        "reliability": {name: reliability(each.bins) for name, each in quality.items()},
        "gates": check_gates(predict, split, settings.gates, size_px, batch),
        "runtimes": _measure_runtimes(exports, prepared, settings, size_px, quality),
        "samples": [
            {"rank": rank} | {key: rows[index][key] for key in ("id", "kind", "group")} for rank, index in picked
        ],
        "machine": devices[0]["machine"],
        "devices": devices,
        "test": {"sha256": digest, "kinds": manifest["splits"]["test"]["kinds"]},
        "classes": _classes(quality, trained.classes),
        "multilabel": trained.network.multilabel,
    }
    Report.model_validate(result)  # what others read is what the schema says, or it is not written

    samples = []
    for rank, index in picked:
        image, mask = split[index]
        masks_hat = {name: mask_hat[0].numpy() for name, mask_hat in predict([image]).items()}
        samples.append(depth_page.Sample(rank, rows[index], image, mask, masks_hat))
    commit, dirty = git_commit(Path.cwd())
    weights = model / "model.pt" if model.is_dir() else model
    provenance = {
        "Test images (test.arrow), sha256": digest,
        "Raw data manifest, sha256": manifest.get("raw_sha256"),
        "Model file (model.pt), sha256": sha256(weights),
        "Training run": trained.info.get("run"),
        "Epoch of the weights": trained.info.get("epoch"),
        "Params of the training": json.dumps(trained.info.get("params"), sort_keys=True),
        "Network": ", ".join(f"{key} {value}" for key, value in trained.network.config().items()),
        "Commit of the evaluating code": commit + (" with changed files" if dirty else ""),
    }
    rule = {"tolerance_iou": settings.tolerance_iou, "max_latency_ms": settings.max_latency_ms, "resamples": RESAMPLES}
    extremes = {name: find_extremes(rows, name) for name in quality}
    page = depth_page.build_report(result, rows, samples, extremes, shown, rule, provenance)
    write_json(out / "report.json", result)
    compared = {key: {name: round(row[key], 4) for name, row in depths.items()} for key in ("iou_image", "latency_ms")}
    write_json(out / "metrics.json", {"recommended_depth": decision.depth} | compared)
    _write_csv(out / "depths.csv", [{"depth": name} | row for name, row in depths.items()])
    _write_csv(out / "images.csv", rows)
    _write_csv(out / "reliability.csv", depth_page.reliability_rows(result))
    with replacing(out / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return result


def _rule(settings: Evaluate, decision: Decision) -> dict:
    limits = ("tolerance_iou", "max_latency_ms", "max_memory_mib", "max_parameters")
    return {name: getattr(settings, name) for name in limits} | {"candidates": decision.candidates}


def _measure_runtimes(
    exports: Path | None, prepared: Path, settings: Evaluate, size_px: int, quality: dict[str, Quality]
) -> list[dict]:
    """A row for each exported model; none without exports."""
    if exports is None:
        return []
    from pipelines.evaluation.runtime_scores import measure_runtimes  # late: they are extras

    ious = {name: metrics.per_image_iou(each.counts).numpy() for name, each in quality.items()}
    return measure_runtimes(exports, prepared, settings, size_px, ious)


def main() -> None:
    parser = argparse.ArgumentParser(prog="pipelines.evaluate", description="Measure every depth on the test split.")
    parser.add_argument("--prepared", type=Path, required=True, help="folder that the prepare stage wrote")
    parser.add_argument("--model", type=Path, required=True, help="folder that the train stage wrote, or its model.pt")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--exports", type=Path, help="folder that the export stage wrote, to measure its models too")
    arguments = parser.parse_args()
    params = load_params()
    if params.train.use_gpu and not torch.cuda.is_available():
        raise UserError(
            "train.use_gpu is true, and torch finds no CUDA device here: set it to false, or use a machine with a GPU"
        )
    device = torch.device("cuda" if params.train.use_gpu else "cpu")
    result = evaluate(arguments.prepared, arguments.model, arguments.out, params.evaluate, device, arguments.exports)
    print(describe(result))
    print(f"\nreport: {arguments.out / 'report.html'}")


if __name__ == "__main__":
    run_command(main)
