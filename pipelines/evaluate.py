"""The evaluate stage: what each depth of the trained network scores on the test split, and what it costs.

    python -m pipelines.evaluate --prepared data/prepared --model models/train --out reports/evaluate

The only stage that reads the test split. Quality is a function of data and weights; latency, throughput and
memory are of this machine, on this day.
"""

import argparse
import csv
import os
import platform
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from math import isnan
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipelines import report
from pipelines.files import replacing, sha256, write_json
from pipelines.params import load_params
from pipelines.sections import Evaluate
from pipelines.stage import run_command
from unetpp import cost, metrics
from unetpp.data import Split, read_manifest
from unetpp.errors import UserError
from unetpp.inference import Segmenter, Trained, load_model, scale
from unetpp.masks import to_mask, to_probs
from unetpp.pruning import prune

MEAN = "mean"  # the name of the ensemble: the mean of the probabilities of all heads
RESAMPLES = 2000
BATCH_PIXELS = 2**21  # of the images predicted together; large ones go one by one


def head_probs(segmenter: Segmenter, image: Tensor) -> list[Tensor]:
    """Probabilities (N, num_classes, H, W) of every head, shallowest first, of images (N, C, H, W)."""
    height, width = image.shape[-2:]
    multilabel = segmenter.network.multilabel
    return [to_probs(logits, multilabel)[..., :height, :width] for logits in segmenter.logits(image)]


class Predictor:
    """Masks of every depth in one pass of the whole network; with several depths, of their mean too."""

    def __init__(self, trained: Trained, device: torch.device):
        self.segmenter = Segmenter(trained.network).eval().to(device)
        self.device = device
        self.names = [f"L{depth}" for depth in trained.depths] + [MEAN] * (len(trained.depths) > 1)

    def __call__(self, images: Iterable[np.ndarray]) -> dict[str, Tensor]:
        """(H, W, C) images of one size to the (N, H, W) uint8 masks of each name."""
        batch = torch.stack([scale(image) for image in images]).to(self.device)  # (N, C, H, W)
        with torch.inference_mode():
            probs = head_probs(self.segmenter, batch)
            probs.append(torch.stack(probs).mean(dim=0))
            multilabel = self.segmenter.network.multilabel
            return {name: to_mask(each, multilabel).cpu() for name, each in zip(self.names, probs, strict=False)}


def count_pixels(predict: Predictor, split: Split, batch_size: int) -> dict[str, Tensor]:
    """Run the split once; (N, K, 3) counts of each name, in the split's order (see `metrics.confusion`)."""
    network = predict.segmenter.network
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index in range(len(split)):
        by_size.setdefault(split[index][0].shape, []).append(index)
    counts: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(split) for name in predict.names}
    for (height, width, _), indices in by_size.items():
        step = max(1, min(batch_size, BATCH_PIXELS // (height * width)))
        for group in (indices[start : start + step] for start in range(0, len(indices), step)):
            images, masks = zip(*(split[index] for index in group), strict=True)
            mask = torch.from_numpy(np.stack(masks))  # (n, H, W)
            for name, mask_hat in predict(images).items():
                each = metrics.confusion(mask_hat, mask, network.num_classes, network.multilabel)
                for index, one in zip(group, each, strict=True):
                    counts[name][index] = one
    return {name: torch.stack(each) for name, each in counts.items()}


def bootstrap(ious: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means over 2000 resamples of the images, the same ones for every name: differences are paired."""
    table = np.stack(list(ious.values()), axis=1)  # (N, names)
    rng = np.random.default_rng(0)
    means = np.stack([table[rng.integers(len(table), size=len(table))].mean(axis=0) for _ in range(RESAMPLES)])
    return dict(zip(ious, means.T, strict=True))


def interval(means: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled means."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def measure_quality(counts: dict[str, Tensor], means: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The three IoUs and three Dice of each name, and the interval of iou_image."""
    names = ("iou_image", "iou_image_low", "iou_image_high", "iou_pixels", "iou_paper")
    names += ("dice_image", "dice_pixels", "dice_paper")
    result = {}
    for depth, each in counts.items():
        low, high = interval(means[depth])
        found = metrics.scores(each) | {"iou_image_low": low, "iou_image_high": high}
        result[depth] = {name: found[name] for name in names}
    return result


def measure_cost(
    trained: Trained, size_px: int, rounds: int, batch_size: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Parameters, MACs, latency, throughput, memory and size on disk of each depth, pruned as for deployment.

    "mean" is the whole network with all heads. A pass is from an image in [0, 1] to probabilities, in fp32.
    """
    kept: dict[str, Trained] = {
        f"L{depth}": replace(trained, network=prune(trained.network, depth)) for depth in trained.depths
    }
    modules: dict[str, nn.Module] = {name: each.segmenter() for name, each in kept.items()}
    if len(trained.depths) > 1:
        kept[MEAN] = trained
        modules[MEAN] = trained.ensemble()
    batch = torch.rand(batch_size, trained.network.in_channels, size_px, size_px, device=device)
    example = batch[:1]
    for module in modules.values():
        module.to(device)
    latency = cost.measure_latency(modules, example, rounds)
    return {
        name: {
            "parameters": cost.count_parameters(module),
            "macs": cost.count_macs(module, example),
            "latency_ms": round(latency[name].median_ms, 3),
            "latency_p95_ms": round(latency[name].p95_ms, 3),
            "images_per_s": round(cost.measure_throughput(module, batch), 2),
            "peak_memory_mib": round(cost.measure_peak_memory_mib(module, example), 3),
            "size_mib": round(_size_mib(kept[name]), 3),
        }
        for name, module in modules.items()
    }


def _size_mib(trained: Trained) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        trained.save(path)
        return path.stat().st_size / cost.MIB


def _points(iou: float) -> str:
    """A difference of IoU in points, hundredths: 0.004 is '0.4 points'."""
    text = f"{iou * 100:.1f}"
    return f"{text} point" if text == "1.0" else f"{text} points"


def recommend(
    depths: dict[str, dict[str, float]],
    means: dict[str, np.ndarray],
    tolerance_iou: float,
    max_latency_ms: float | None,
) -> tuple[int | None, str]:
    """The depth to deploy, and a sentence that says why.

    It is the smallest whose iou_image is at most `tolerance_iou` below the best depth's, and whose median
    latency is at most `max_latency_ms` where that is set. The mean of the heads is no candidate, since it
    costs more than any depth.

    Args:
        depths: the measured numbers by name, shallowest first.
        means: resampled means of iou_image by name, paired (see `bootstrap`).

    Returns:
        the depth, or None where no depth satisfies both.
    """
    single = {name: row for name, row in depths.items() if name != MEAN}
    best = max(single, key=lambda name: single[name]["iou_image"])
    iou = {name: row["iou_image"] for name, row in single.items()}
    latency = {name: row["latency_ms"] for name, row in single.items()}
    near = [name for name in single if iou[best] - iou[name] <= tolerance_iou + 1e-12]
    quick = [name for name in single if max_latency_ms is None or latency[name] <= max_latency_ms]
    limit = "" if max_latency_ms is None else f"the limit of {max_latency_ms:g} ms"
    if not quick:
        name = min(latency, key=lambda name: latency[name])
        return None, (
            f"No depth is recommended: none is within {limit}; the nearest is {name} with "
            f"{latency[name]:.1f} ms and iou_image {iou[name]:.3f}."
        )
    chosen = next((name for name in near if name in quick), None)
    if chosen is None:
        name = max(quick, key=lambda name: iou[name])
        return None, (
            f"No depth is recommended: of those within {limit} {name} is the most accurate, and its "
            f"iou_image {iou[name]:.3f} is {_points(iou[best] - iou[name])} below {best}, "
            f"more than the tolerance of {_points(tolerance_iou)}."
        )
    start = f"{chosen} is recommended: iou_image {iou[chosen]:.3f}"
    within = "" if max_latency_ms is None else f"; its {latency[chosen]:.1f} ms are within {limit}"
    if len(single) == 1:
        return int(chosen[1:]), f"{start}; it is the only depth of this network that has a head{within}."
    if chosen == best:
        smaller = [name for name in single if int(name[1:]) < int(best[1:])]
        why = "the best of all depths"
        if not smaller:
            why += ", and the smallest"
        elif any(name in near for name in smaller):
            why += f"; the smaller ones within the tolerance of {_points(tolerance_iou)} are too slow"
        else:
            why += f", and each smaller one is more than the tolerance of {_points(tolerance_iou)} below it"
        return int(chosen[1:]), f"{start}, {why}{within}."
    low, high = interval(means[best] - means[chosen])
    speed = latency[best] / latency[chosen]
    faster = f", and {speed:.1f} times as fast" if speed >= 1.05 else ""
    return int(chosen[1:]), (
        f"{start}, {_points(iou[best] - iou[chosen])} below {best} (95 % interval of the paired difference "
        f"{low * 100:.1f} to {high * 100:.1f} points), within the tolerance of {_points(tolerance_iou)}"
        f"{faster}{within}."
    )


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """What the costs were read on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "precision": "fp32",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


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


def _pick(rows: list[dict], name: str) -> dict[str, int]:
    """The indices in `rows` of the best, the median and the worst image of a name; ties go by id."""
    order = sorted(range(len(rows)), key=lambda index: (-rows[index][f"iou_{name}"], rows[index]["id"]))
    return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}


def _write_csv(path: Path, rows: list[dict]) -> None:
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def evaluate(prepared: Path, model: Path, out: Path, settings: Evaluate, device: torch.device) -> dict:
    """Measure every depth on the test split; write report.json, depths.csv, images.csv, report.html
    and, for `dvc metrics`, metrics.json with the few numbers that one compares between runs.

    Returns:
        what report.json holds.

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

    predict = Predictor(trained, device)
    counts = count_pixels(predict, split, settings.throughput_batch)
    ious = {name: metrics.per_image_iou(each).numpy() for name, each in counts.items()}
    means = bootstrap(ious)
    size_px = settings.latency_size_px or manifest["size"] or 256
    costs = measure_cost(trained, size_px, settings.latency_rounds, settings.throughput_batch, device)
    depths = {name: row | costs[name] for name, row in measure_quality(counts, means).items()}
    depth, sentence = recommend(depths, means, settings.tolerance_iou, settings.max_latency_ms)
    reading = {
        "size_px": size_px,
        "latency_rounds": settings.latency_rounds,
        "throughput_batch": settings.throughput_batch,
    }
    result = {
        "recommended_depth": depth,
        "recommendation": sentence,
        "num_images": len(split),
        "depths": depths,
        "machine": describe_machine(device) | reading,
        "test": {"sha256": digest, "kinds": manifest["splits"]["test"]["kinds"]},
        "classes": {
            # None for a class that is in no test image and that no depth finds.
            name: {one: None if isnan(iou) else iou for one, iou in zip(trained.classes, found, strict=True)}
            for name, found in ((name, metrics.per_class_iou(each)) for name, each in counts.items())
        },
    }

    rows: list[dict] = [
        {"id": id_, "kind": kind} | {f"iou_{name}": round(float(ious[name][index]), 6) for name in ious}
        for index, (id_, kind) in enumerate(zip(split.ids, split.kinds, strict=True))
    ]
    shown = f"L{depth or trained.depths[-1]}"  # the images to show are ranked by the depth to deploy
    samples = []
    for rank, index in _pick(rows, shown).items():
        image, mask = split[index]
        masks_hat = {name: mask_hat[0].numpy() for name, mask_hat in predict([image]).items()}
        samples.append(report.Sample(rank, rows[index], image, mask, masks_hat))
    weights = model / "model.pt" if model.is_dir() else model
    provenance = {
        "Test images (test.arrow), sha256": digest,
        "Raw data manifest, sha256": manifest.get("raw_sha256"),
        "Model file (model.pt), sha256": sha256(weights),
        "Training run": trained.info.get("run"),
        "Epoch of the weights": trained.info.get("epoch"),
        "Network": ", ".join(f"{key} {value}" for key, value in trained.network.config().items()),
    }
    page = report.build_report(
        result,
        rows,
        samples,
        {name: _pick(rows, name) for name in ious},
        shown,
        {
            "tolerance_iou": settings.tolerance_iou,
            "max_latency_ms": settings.max_latency_ms,
            "resamples": RESAMPLES,
        },
        provenance,
    )
    write_json(out / "report.json", result)
    compared = {key: {name: round(row[key], 4) for name, row in depths.items()} for key in ("iou_image", "latency_ms")}
    write_json(out / "metrics.json", {"recommended_depth": depth} | compared)
    _write_csv(out / "depths.csv", [{"depth": name} | row for name, row in depths.items()])
    _write_csv(out / "images.csv", rows)
    _write_csv(out / "reliability.csv", report.reliability_rows(result))
    with replacing(out / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="pipelines.evaluate", description="Measure every depth on the test split.")
    parser.add_argument("--prepared", type=Path, required=True, help="folder that the prepare stage wrote")
    parser.add_argument("--model", type=Path, required=True, help="folder that the train stage wrote, or its model.pt")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args()
    params = load_params()
    if params.train.use_gpu and not torch.cuda.is_available():
        raise UserError(
            "train.use_gpu is true, and torch finds no CUDA device here: set it to false, or use a machine with a GPU"
        )
    device = torch.device("cuda" if params.train.use_gpu else "cpu")
    result = evaluate(arguments.prepared, arguments.model, arguments.out, params.evaluate, device)
    print(report.depth_table(result))
    print(f"\n{result['recommendation']}\nreport: {arguments.out / 'report.html'}")


if __name__ == "__main__":
    run_command(main)
