"""The results of a finished training run: the best weights as a model file, curves, and metrics of the best epoch."""

from pathlib import Path

import torch

from pipelines import detail
from pipelines.core.files import replacing, write_json
from pipelines.core.tables import write_rows
from pipelines.training.spec import TrainSpec
from pipelines.training.state import TrainState
from unetpp.data.arrow_split import Split
from unetpp.models.model_file import MODEL, Trained
from unetpp.network.masks import MASK
from unetpp.training.choice import WHY
from unetpp.training.separation import choose_separations


def write_results(
    state: TrainState, spec: TrainSpec, name: str, out: Path, reports: Path, val: Path | None = None
) -> None:
    """Write `out/model.safetensors`, `reports/curves.csv` (a row per epoch and depth) and `reports/metrics.json`.

    Args:
        name: name of the run.
        val: the split on which the separation of objects is tuned, if the network has targets for it; by default that
            of the spec.
    """
    network, manifest = spec.build_network(), spec.manifest
    network.load_state_dict(state.best.weights)
    best = state.history[state.best.epoch]
    info = {"run": name, "epoch": best["epoch"], "val_iou": best["val_iou"], "params": spec.sections}
    kept = f"{best['epoch']} of {len(state.history)}"
    info["kept"] = f"{kept}: {WHY}"
    info["classes"] = manifest.classes
    if manifest.values:
        info["values"] = manifest.values  # `unetpp predict --save values` writes masks with the values of the dataset
    info["data"] = {split: facts.sha256 for split, facts in manifest.splits.items()}
    if spec.init and spec.init.origin:
        info["init"] = spec.init.origin
    if spec.encoder_weights:
        info["encoder_weights"] = {"uri": spec.encoder_weights.uri, "sha256": spec.encoder_weights.sha256}
    trained = Trained(network, manifest.size, info, fit=manifest.fit)
    if network.targets != MASK:
        val_split = Split(val or spec.prepared / f"{manifest.full_val}.arrow")
        use_gpu = spec.train.use_gpu and torch.cuda.is_available()
        info["separation"] = choose_separations(trained, val_split, torch.device("cuda" if use_gpu else "cpu"))
        chosen = (
            f"{depth} seed {one['seed']:g}, smallest {one['smallest_px']} px"
            for depth, one in info["separation"].items()
        )
        detail(f"objects are separated with the parameters that score best on val: {'; '.join(chosen)}")
    with replacing(out) as folder:
        folder.mkdir()
        trained.save(folder / MODEL)
    rows = []
    for row in state.history:
        shared = [f"{row['train_loss']:.6f}", f"{row['learning_rate']:.3e}"]
        for depth in (f"L{depth}" for depth in network.depths):
            own = [f"{row[f'val_iou_{depth}']:.6f}", f"{row[f'val_loss_{depth}']:.6f}"]
            rows.append([row["epoch"], depth, *own, *shared, int(row is best)])
    header = ("epoch", "depth", "val_iou", "val_loss", "train_loss", "learning_rate", "kept")
    write_rows(reports / "curves.csv", header, rows)
    # Without speed: it differs from run to run, and `dvc metrics diff` compares these metrics.
    ious = {f"L{depth}": round(best[f"val_iou_L{depth}"], 4) for depth in network.depths}
    numbers = {"epochs": len(state.history), "best_epoch": best["epoch"], "val_iou": ious}
    write_json(reports / "metrics.json", numbers)
    print(f"train: kept epoch {kept}, val IoU " + "  ".join(f"{depth} {iou:.3f}" for depth, iou in ious.items()))
    detail(f"kept: {WHY}\nwrote {out / MODEL}, {reports / 'curves.csv'}, {reports / 'metrics.json'}")
