"""A network of two depths with its exports, as stage export writes them."""

import json
from pathlib import Path

import numpy as np
import torch

from tests.unetpp.network.classic import with_lived_in_norms
from unetpp.export.graphs import capture, save_onnx
from unetpp.export.quantisation import quantise
from unetpp.files import sha256
from unetpp.models.model_file import Trained, load_model
from unetpp.network.model import NestedUNet

FILES = {"safetensors": "model.safetensors", "onnx": "model.onnx", "onnx-int8": "model-int8.onnx"}
ROWS = (  # of an engines.json: engine, format, within
    ("torch-bf16", None, True),
    ("onnxruntime", "onnx", True),
    ("openvino", "onnx", True),
    ("openvino-bf16", "onnx", False),
    ("openvino-int8", "onnx-int8", True),
)


def made(folder: Path) -> Trained:
    """Write `train/`, `exports/` with L1 alone, and engines.json."""
    torch.manual_seed(0)
    (folder / "train").mkdir()
    (folder / "exports/L1").mkdir(parents=True)
    network = with_lived_in_norms(NestedUNet((4, 6, 8), upsampling="bilinear"))
    Trained(network, None).save(folder / "train/model.safetensors")
    trained = load_model(folder / "train")
    files = {form: folder / "exports/L1" / name for form, name in FILES.items()}
    trained.folded(1).save(files["safetensors"])
    save_onnx(capture(trained.folded(1).segmenter()), files["onnx"], 18)
    rng = np.random.default_rng(0)
    quantise(files["onnx"], files["onnx-int8"], [rng.random((1, 3, 40, 30), np.float32) for _ in range(3)])
    entries = [
        {"depth": "L1", "format": form, "file": f"L1/{path.name}", "sha256": sha256(path)}
        for form, path in files.items()
    ]
    listing = {"model_sha256": trained.sha256, "exports": entries}
    (folder / "exports/exports.json").write_text(json.dumps(listing))
    rows = [
        {
            "depth": "L1",
            "engine": engine,
            "sha256": sha256(files[form]) if form else None,
            "difference_iou": -0.0004,
            "within": within,
        }
        for engine, form, within in ROWS
    ]
    measured = {"format": 1, "model_sha256": trained.sha256, "engines": rows}
    (folder / "engines.json").write_text(json.dumps(measured))
    return trained
