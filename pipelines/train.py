"""The train stage: the chosen network, trained by Ray Train; the best checkpoint by validation IoU is its result.

A run that was cut goes on from its last checkpoint when the same command is given again.
"""

import argparse
import csv
import json
from pathlib import Path

import yaml
from pydantic import ValidationError

from pipelines.cluster import check_fits, cluster
from pipelines.files import replacing, write_json
from pipelines.node_cache import share
from pipelines.params import Params, load_params
from pipelines.sections import Architecture, Model
from pipelines.stage import run_command
from pipelines.system import sampled
from pipelines.worker import build_network, make_settings, run_name, run_on_ray
from unetpp.checkpoint import newest_checkpoint
from unetpp.data import read_manifest
from unetpp.errors import UserError
from unetpp.inference import Trained


def read_architecture(path: Path) -> list[int]:
    """The widths that search wrote.

    Raises:
        UserError: no such file, or not a list of widths.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `dvc repro search` writes it")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return list(Architecture.model_validate(found).widths)
    except ValidationError:
        raise UserError(f"{path}: found {found!r}; expected `widths:` with 2 to 7 positive whole numbers") from None


def train(params: Params, prepared: Path, architecture: Path, runs: Path, out: Path, reports: Path) -> None:
    """Train, then write `out/model.pt`, `reports/curves.csv` (a row per epoch and depth) and `reports/metrics.json`.

    Raises:
        UserError: the data or the architecture are missing, the cluster is too small, or the loss diverged.
    """
    widths = read_architecture(architecture)
    manifest = read_manifest(prepared)
    settings = make_settings(params, widths, prepared)
    name = run_name("train", settings)  # whatever storage the data are in
    if manifest["splits"]["train"]["num_images"] < params.train.num_workers:
        raise UserError(
            f"{prepared}: {manifest['splits']['train']['num_images']} training image(s) for "
            f"{params.train.num_workers} workers; set train.num_workers to 1, or bring more images"
        )
    state, _ = newest_checkpoint(runs / name)
    if state.get("epoch") == params.train.epochs:
        print(f"{runs / name}: this very training is finished already; its result is taken")
    else:
        if state:
            print(f"{runs / name}: goes on after epoch {state['epoch']} of {params.train.epochs}")
        with cluster():
            check_fits(
                "train.num_workers",
                params.train.num_workers,
                params.train.cpus_per_worker,
                params.train.use_gpu,
                "lower train.num_workers or train.cpus_per_worker",
            )
            stopped = run_on_ray(settings | {"shared": share(params, prepared, manifest)}, name, runs)
        if stopped:
            raise UserError(f"training stopped: {stopped}")
        state, passed_over = newest_checkpoint(runs / name)
        if state.get("epoch") != params.train.epochs:
            raise RuntimeError(f"{runs / name}: no whole checkpoint of the last epoch: {passed_over}")
    write_results(state, settings, name, manifest, out, reports)


def write_results(state: dict, settings: dict, name: str, manifest: dict, out: Path, reports: Path) -> None:
    """The best weights as a model file, the curves as a table, the best epoch as metrics."""
    network = build_network(Model.model_validate(settings["params"]["model"]), settings["widths"], manifest)
    network.load_state_dict(state["best"]["weights"])
    best = state["history"][state["best"]["epoch"]]
    info = {"run": name, "epoch": best["epoch"], "val_iou": best["val_iou"], "params": settings["params"]}
    info["classes"] = manifest["classes"]
    info["data"] = {split: facts["sha256"] for split, facts in manifest["splits"].items()}
    trained = Trained(network, manifest["size"], info)
    with replacing(out) as folder:
        folder.mkdir()
        trained.save(folder / "model.pt")
    with (
        replacing(reports / "curves.csv") as partial,
        open(partial, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(["epoch", "depth", "val_iou", "val_loss", "train_loss", "learning_rate"])
        for row in state["history"]:
            for depth in network.depths:
                of_depth = [f"{row[f'val_iou_L{depth}']:.6f}", f"{row[f'val_loss_L{depth}']:.6f}"]
                table.writerow(
                    [
                        row["epoch"],
                        f"L{depth}",
                        *of_depth,
                        f"{row['train_loss']:.6f}",
                        f"{row['learning_rate']:.3e}",
                    ]
                )
    # Without the speed: it differs from run to run, and these metrics are compared by `dvc metrics diff`.
    ious = {f"L{depth}": round(best[f"val_iou_L{depth}"], 4) for depth in network.depths}
    kept = {"epochs": len(state["history"]), "best_epoch": best["epoch"], "val_iou": ious}
    write_json(reports / "metrics.json", kept)
    print(f"best epoch {best['epoch']} of {len(state['history'])}: val IoU {json.dumps(ious)}")
    print(f"wrote {out / 'model.pt'}, {reports / 'curves.csv'}, {reports / 'metrics.json'}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.train", description=__doc__)
    for name in ("prepared", "architecture", "runs", "out", "reports"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    paths = vars(parser.parse_args())
    with sampled(paths["reports"] / "system.csv"):
        train(load_params(), **paths)


if __name__ == "__main__":
    run_command(main)
