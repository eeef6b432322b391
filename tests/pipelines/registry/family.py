"""What the stages before register write, made by hand for a network of two depths, and registering it."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import torch
import yaml

from pipelines import register as stage
from pipelines.core.checksums import seal
from pipelines.core.files import write_json
from pipelines.core.sections.delivery import Register
from pipelines.registry.run_log import Inputs
from tests.pipelines.evaluation.exported import write_exports
from unetpp.data.arrow_split import SplitWriter
from unetpp.data.manifest import Manifest, SplitFacts
from unetpp.files import sha256
from unetpp.models.model_file import Trained, load_model
from unetpp.network.model import NestedUNet

NAME = "nuclei"
SENTENCE = "L1 is the smallest depth within 0.010 IoU of the best."
PARAMS = {
    "ingest": {"kind": "s3", "location": "s3://images/set"},
    "train": {"epochs": 2, "learning_rate": 0.002},
    "search": {"widths": [[4, 8, 16]]},
    "prepare": {"size": None},
}
LOCK = {
    "schema": "2.0",
    "stages": {
        "ingest": {"cmd": "x", "outs": [{"path": "data/raw", "hash": "md5", "md5": "aa.dir"}]},
        "prepare": {"cmd": "x", "outs": [{"path": "data/prepared", "hash": "md5", "md5": "bb.dir"}]},
        "train": {"cmd": "x", "outs": [{"path": "models/train", "hash": "md5", "md5": "cc.dir"}]},
    },
}
IMAGES = tuple(f"image {number}" for number in range(8))


def settings(name: str = NAME, **changes) -> Register:
    values = {
        "experiment": "tests",
        "model_name": name,
        "tracking_uri": None,
        "live": False,
        "promotion_tolerance_iou": 0.01,
        "promotion_tolerance_ap": 0.01,
    }
    values |= {"promotion_min_images": 5, "licence": "CC-BY-4.0", "intended_use": "to count nuclei"}
    return Register.model_validate(values | changes)


def measured(depth: int) -> dict:
    values = {"iou_image": 0.80 + depth / 100, "iou_image_low": 0.78, "iou_image_high": 0.85, "dice_image": 0.9}
    values |= {"latency_ms": 2.0 * depth, "latency_p95_ms": 2.5 * depth, "images_per_s": 300 / depth}
    return values | {"parameters": 1000 * depth, "macs": 10**6, "peak_memory_mib": 10.0, "size_mib": 0.1}


def write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_stages(folder: Path, seed: int = 0, iou: float = 0.8, images=IMAGES, gates: dict | None = None) -> Path:
    """The folders of a pipeline run; `seed` draws the weights, `iou` is about what every image scores at L1."""
    torch.manual_seed(seed)
    (folder / "model").mkdir(parents=True)
    info: dict = {"params": {"train": {"seed": seed, "precision": "fp32"}}}
    info["init"] = {"uri": "models:/older/3", "sha256": "0" * 64}
    Trained(NestedUNet([4, 8, 16]).eval(), 96, info).save(folder / "model/model.safetensors")
    rng = np.random.default_rng(0)
    (folder / "prepared").mkdir()
    splits = {}
    for split in ("train", "val", "test"):
        path = folder / f"prepared/{split}.arrow"
        with SplitWriter(path) as writer:
            for id in images:
                mask = np.zeros((32, 40), np.uint8)
                mask[8:20, 10:30] = 1
                writer.add(f"{split} {id}", "tissue", rng.integers(0, 255, (32, 40, 3), np.uint8), mask)
        splits[split] = SplitFacts(len(images), sha256(path), {"tissue": len(images)})
    manifest = Manifest(size=96, channels=3, num_classes=1, splits=splits, num_groups=9, raw_sha256="ab")
    manifest.write(folder / "prepared")
    duplicates = {"num_pairs": 2, "num_images": 20, "across": 0, "pairs": []}
    write_json(folder / "prepared/fingerprint.json", {"duplicates": duplicates})
    curves = [(epoch, depth) for epoch in range(3) for depth in (1, 2)]
    rows = [
        {
            "epoch": e,
            "depth": f"L{d}",
            "val_iou": f"0.{e}{d}",
            "val_loss": 0.5,
            "train_loss": 0.7,
            "learning_rate": 0.002,
        }
        for e, d in curves
    ]
    write_csv(folder / "train/curves.csv", rows)
    times = [
        {"time": 1.7e9 + 2 * n, "cpu_utilization_percentage": 50 + n, "gpu_0_power_usage_watts": ""} for n in (0, 1)
    ]
    write_csv(folder / "train/system.csv", times)
    digest = sha256(folder / "model/model.safetensors")
    metrics = {
        "model_sha256": digest,
        "test": {"sha256": splits["test"].sha256},
        "recommended_depth": 1,
        "recommendation": SENTENCE,
        "num_images": len(images),
        "depths": {"L1": measured(1) | {"hd95_px": None}, "L2": measured(2), "mean": measured(2)},
        "machine": {"cores": 2},
    }
    write_json(folder / "evaluation/report.json", metrics | ({"gates": gates} if gates else {}))
    (folder / "evaluation/report.html").write_text("<h1>report</h1>")
    rows = [
        {"id": f"test {id}", "kind": "tissue", "group": f"group {n // 2}"}
        | {"iou_L1": round(iou + n / 1000, 4), "iou_L2": 0.9, "iou_mean": 0.9}
        for n, id in enumerate(images)
    ]
    write_csv(folder / "evaluation/images.csv", rows)
    for depth in (1, 2):
        (folder / f"exports/L{depth}/openvino").mkdir(parents=True)
        (folder / f"exports/L{depth}/model.onnx").write_bytes(bytes([depth]))
        (folder / f"exports/L{depth}/openvino/model.xml").write_bytes(bytes([depth]))
    files = [f"L{depth}/model.onnx" for depth in (1, 2)]
    listed = [{"file": file, "sha256": sha256(folder / "exports" / file)} for file in files]
    write_json(folder / "exports/exports.json", {"model_sha256": digest, "exports": listed})
    seal(folder / "exports")
    write_trials(folder / "search")
    return folder


def write_engines(folder: Path) -> None:
    """Exports that can be opened in place of those that `write_stages` makes up, and what evaluate says of engines."""
    trained = load_model(folder / "model")
    shutil.rmtree(folder / "exports")
    write_exports(folder / "exports", trained)
    seal(folder / "exports")
    listed = json.loads((folder / "exports/exports.json").read_text())["exports"]
    files = {(one["depth"], "onnxruntime"): one for one in listed}
    scores = {"iou_image": 0.8, "difference_iou": -0.0011, "within": True}
    rows = [
        {"depth": f"L{depth}", "engine": name}
        | {key: files.get((f"L{depth}", name), {}).get(key) for key in ("file", "sha256")}
        | scores
        for depth in (1, 2)
        for name in ("torch", "onnxruntime")
    ]
    said = {"format": 1, "model_sha256": trained.sha256, "val_sha256": "0" * 64, "tolerance_iou": 0.002}
    write_json(folder / "evaluation/engines.json", said | {"engines": rows})
    costs = {"latency_ms": 2.5, "latency_p95_ms": None, "images_per_s": 400.0, "size_mib": 0.1}
    measured = {"val_iou_image": 0.8, "val_difference_iou": -0.0011}
    rows = [row | costs | measured | {"auto": row["engine"] == "onnxruntime"} for row in rows]
    change_report(folder, engines={"tolerance_iou": 0.002, "rows": rows})


def write_trials(folder: Path) -> None:
    """What a search of three trials leaves, one of which failed."""
    fixed = {"macs": 10, "latency_ms": 1.5, "seconds": 3, "epochs": 2, "status": "done", "reason": ""}
    rows = [
        {"trial": trial, "widths": widths, "depth": f"L{depth}", "val_iou": 0.5 + depth / 10, "parameters": 100 * depth}
        | fixed
        | {"on_front": 1, "chosen": chosen, "train.learning_rate": rate}
        for trial, widths, chosen, rate in (("0", "4 8 16", 1, 0.001), ("1", "4 8 12", 0, 0.01))
        for depth in (1, 2)
    ]
    failed = dict.fromkeys(rows[0], "") | {"trial": "2", "widths": "999 999", "status": "failed", "reason": "no memory"}
    write_csv(folder / "search.csv", [*rows, failed])
    epochs = [(trial, epoch, depth) for trial in "01" for epoch in (0, 1) for depth in (1, 2)]
    write_csv(
        folder / "curves.csv",
        [{"trial": t, "epoch": e, "depth": f"L{d}", "val_iou": round(0.1 * d + 0.2 * e, 3)} for t, e, d in epochs],
    )


def inputs(folder: Path) -> Inputs:
    return Inputs(
        folder / "prepared",
        folder / "model",
        folder / "train/curves.csv",
        folder / "evaluation",
        folder / "search",
        folder / "exports",
    )


def register(folder: Path, name: str = NAME, uri: str | None = None, **changes) -> dict:
    return stage.register(inputs(folder), PARAMS, settings(name, **changes), uri or f"sqlite:///{folder}/mlflow.db")


def write_lock(folder: Path) -> None:
    (folder / "dvc.lock").write_text(yaml.safe_dump(LOCK))
    (folder / "requirements.lock").write_text("torch==2.13.0\n")


def change_report(folder: Path, **changes) -> None:
    path = folder / "evaluation/report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
