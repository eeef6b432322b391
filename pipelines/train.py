"""The train stage: the chosen network, trained; the best checkpoint by validation IoU is its result.

One worker trains in this process, several as processes of Ray Train, and where RAY_ADDRESS names a cluster all do.
A run that was cut goes on from its last checkpoint when the same command is given again. SIGTERM stops it with a
checkpoint and exit code 143.
"""

import argparse
import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from pydantic import ValidationError

from pipelines.cluster.jobs import address_of, run_remotely
from pipelines.cluster.ray_cluster import check_fits, cluster
from pipelines.console.machine_load import sampled
from pipelines.console.progress import relayed
from pipelines.core.checksums import sha256
from pipelines.core.command import run_command
from pipelines.core.files import replacing, write_json
from pipelines.core.params import Params, load_params, override
from pipelines.core.training_sections import Architecture, Model
from pipelines.registry.live_log import UNLOGGED, logged_live
from pipelines.storage.node_cache import share
from pipelines.storage.run_store import RunStore, open_store, runs_at
from pipelines.training.in_process import run_alone
from pipelines.training.ray_worker import STOPPED, reported, run_on_ray
from pipelines.training.spec import build_network, make_settings, run_name
from unetpp.data.manifest import Manifest, read_manifest
from unetpp.errors import UserError
from unetpp.inference.model_file import Trained

TERMINATED = 128 + signal.SIGTERM  # the exit code of what SIGTERM has stopped, 143


def read_architecture(path: Path) -> Architecture:
    """What search chose: widths, other values of params by dotted key, and perhaps weights to begin with.

    Raises:
        UserError: no such file, or not an architecture.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `dvc repro search` writes it")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return Architecture.model_validate(found)
    except ValidationError:
        raise UserError(
            f"{path}: found {found!r}; expected `widths:` with 2 to 7 positive whole numbers, and perhaps `params:` "
            "with values by dotted key and `init:` with a file of weights"
        ) from None


def find_init(path: Path, chosen: Architecture, params: Params) -> dict[str, str] | None:
    """The weights that train.init asks for: {"file", "sha256"}; None where it asks for none, or search had no trial.

    Raises:
        UserError: the file that the search kept is gone.
    """
    if params.train.init is None or chosen.init is None:
        return None
    file = path.parent / chosen.init
    if not file.is_file():
        raise UserError(
            f"{path}: there is no {file.name} beside it, the weights to begin with: run `dvc repro search`, or set "
            "train.init=null"
        )
    return {"file": str(file.absolute()), "sha256": sha256(file)}


def train(params: Params, prepared: Path, architecture: Path, runs: Path, out: Path, reports: Path) -> None:
    """Train, then write `out/model.pt`, `reports/curves.csv` (a row per epoch and depth) and `reports/metrics.json`.

    Raises:
        UserError: the data or the architecture are missing, the cluster is too small, or the loss diverged.
    """
    chosen = read_architecture(architecture)
    params = override(params, chosen.params)  # what was searched beside widths
    manifest = read_manifest(prepared)
    settings = make_settings(params, chosen.widths, prepared) | {"init": find_init(architecture, chosen, params)}
    name = run_name("train", settings)  # whatever storage the data are in
    if manifest.splits["train"].num_images < params.train.max_workers:
        raise UserError(
            f"{prepared}: {manifest.splits['train'].num_images} training image(s) for "
            f"{params.train.max_workers} workers; set train.num_workers to 1, or bring more images"
        )
    run = open_store(f"{runs_at(params, runs)}/{name}", params.ingest.s3)
    state, _ = run.newest()
    if _finished(state, params):
        print(f"{run.name}: this very training is finished already; its result is taken")
    else:
        if state:
            inside = f", in epoch {state['epoch'] + 1} after step {state['step']}" if "step" in state else ""
            print(f"{run.name}: goes on after epoch {state['epoch']} of {params.train.epochs}{inside}")
        with logged_live(params, name, state.get("history", ()), reports / UNLOGGED) as log:
            if not _run(params, settings, run, name, prepared, manifest, log):
                print(
                    f"{run.name}: stopped by SIGTERM with a checkpoint; the same command goes on from it",
                    file=sys.stderr,
                )
                raise SystemExit(TERMINATED)
        state, passed_over = run.newest()
        if not _finished(state, params):
            raise RuntimeError(f"{run.name}: no whole checkpoint of the last epoch: {passed_over}")
    write_results(state, settings, name, manifest, out, reports)


def _finished(state: dict, params: Params) -> bool:
    return state.get("epoch") == params.train.epochs and "step" not in state


def _run(
    params: Params,
    settings: dict,
    run: RunStore,
    name: str,
    prepared: Path,
    manifest: Manifest,
    log: Callable[[dict], None],
) -> bool:
    """Train to the end, here or on Ray; False where SIGTERM stopped it. `log` gets the row of each epoch."""
    train = params.train
    if train.num_workers == 1 and not os.environ.get("RAY_ADDRESS"):
        cores = os.cpu_count() or 1
        if train.cpus_per_worker > cores:
            raise UserError(
                f"train.cpus_per_worker: found {train.cpus_per_worker}, and this machine has {cores} cores; lower it"
            )
        return run_alone(settings, run, log)
    here = not os.environ.get("RAY_ADDRESS")
    with cluster(), relayed(here) as screen, reported(log) as callbacks:
        advice = "lower train.num_workers or train.cpus_per_worker"
        check_fits("train.num_workers", train.min_workers, train.cpus_per_worker, train.use_gpu, advice)
        shared = {"shared": share(params, prepared, manifest)}
        stopped = run_on_ray(settings | screen | shared, name, run, callbacks)
    if stopped and stopped != STOPPED:
        raise UserError(f"training stopped: {stopped}")
    return not stopped


def write_results(state: dict, settings: dict, name: str, manifest: Manifest, out: Path, reports: Path) -> None:
    """The best weights as a model file, the curves as a table, the best epoch as metrics."""
    network = build_network(Model.model_validate(settings["params"]["model"]), settings["widths"], manifest)
    network.load_state_dict(state["best"]["weights"])
    best = state["history"][state["best"]["epoch"]]
    info = {"run": name, "epoch": best["epoch"], "val_iou": best["val_iou"], "params": settings["params"]}
    info["classes"] = manifest.classes
    info["data"] = {split: facts.sha256 for split, facts in manifest.splits.items()}
    trained = Trained(network, manifest.size, info)
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
    paths, params = vars(parser.parse_args()), load_params()
    if address := address_of(params):
        run_remotely("train", params, address, paths)
        return
    with sampled(paths["reports"] / "system.csv"):
        train(params, **paths)


if __name__ == "__main__":
    run_command(main)
