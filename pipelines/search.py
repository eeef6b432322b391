"""The search stage: short trials of each candidate by Ray Tune; the winner flows to train as a file.

Each trial is the training of the train stage with fewer epochs: one plain process, or a Ray Train run where
`search.num_workers` asks for several. A deeply supervised trial of depth D shows the accuracy of D depths.
This is the one file that imports ray.tune.
"""

import argparse
import csv
import os
import time
from pathlib import Path
from typing import Any

import yaml

from pipelines.cluster import check_fits, cluster
from pipelines.files import replacing
from pipelines.jobs import address_of, run_remotely
from pipelines.node_cache import share
from pipelines.params import Params, load_params
from pipelines.stage import run_command
from pipelines.worker import build_network, epochs, make_settings, run_name, run_on_ray
from unetpp.cost import count_parameters
from unetpp.data import read_manifest
from unetpp.errors import UserError
from unetpp.model import MAX_DEPTH


def trial(space: dict[str, Any], settings: dict[str, Any]) -> None:
    """One candidate as one plain process; a row of metrics to Ray Tune after each epoch."""
    import torch
    from ray import tune

    gpu = settings["params"]["train"]["use_gpu"]
    for state in epochs(settings | space, torch.device("cuda" if gpu else "cpu"), state={}):
        if "diverged" in state:
            raise ValueError(f"the loss is not finite any more in epoch {state['epoch']}")
        tune.report(state["history"][-1])


def distributed_trial(space: dict[str, Any], settings: dict[str, Any], runs: str) -> None:
    """One candidate as a Ray Train run of several processes, whose rows go on to Ray Tune."""
    from ray.tune.integration.ray_train import TuneReportCallback

    settings = settings | space
    stopped = run_on_ray(settings, run_name("trial", settings), Path(runs), callbacks=[TuneReportCallback()])
    if stopped:
        raise ValueError(stopped)


def run_trials(params: Params, prepared: Path, runs: Path) -> list[dict[str, Any]]:
    """Train every candidate briefly; an interrupted search goes on, and finished trials are not run again.

    Returns:
        a row a candidate: widths, parameters, status, seconds, best_depth, best_iou, val_iou_L1 ...

    Raises:
        UserError: the cluster is too small for the trials at once, or every trial failed.
    """
    # Trials' working folders are Ray's business; theirs is the path that Ray keeps results under.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    search = params.search
    short = {
        "epochs": search.epochs,
        "num_workers": search.num_workers,
        "cpus_per_worker": search.cpus_per_worker,
        "warmup_epochs": min(params.train.warmup_epochs, search.epochs // 2),
    }
    params = params.model_copy(update={"train": params.train.model_copy(update=short)})
    settings = make_settings(params, [], prepared)
    settings["shared"] = share(params, prepared, settings["manifest"])
    name = run_name("search", settings | {"widths": search.widths})
    at_once = min(search.max_concurrent, len(search.widths))
    with cluster():
        check_fits(
            f"search.max_concurrent = {at_once} trials at once",
            at_once * search.num_workers,
            search.cpus_per_worker,
            params.train.use_gpu,
            "lower search.max_concurrent, search.num_workers or search.cpus_per_worker",
        )
        if search.num_workers == 1:
            resources: Any = {"CPU": search.cpus_per_worker} | ({"GPU": 1} if params.train.use_gpu else {})
            trainable: Any = tune.with_parameters(trial, settings=settings)
        else:
            # The driver only waits for its workers. A share of a core for it could starve them for ever.
            resources = {"trial_driver": 1}
            trainable = tune.with_parameters(distributed_trial, settings=settings, runs=str(runs.absolute()))
        trainable = tune.with_resources(trainable, resources)
        folder = runs.absolute() / name
        if tune.Tuner.can_restore(str(folder)):
            print(f"{runs / name}: the search goes on; finished trials are not run again")
            tuner = tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, resume_errored=True)
        else:
            tuner = tune.Tuner(
                trainable,
                param_space={"widths": tune.grid_search([list(widths) for widths in search.widths])},
                tune_config=tune.TuneConfig(
                    max_concurrent_trials=at_once,
                    trial_dirname_creator=lambda one: f"trial-{one.trial_id}",
                ),
                run_config=tune.RunConfig(name=name, storage_path=str(runs.absolute()), verbose=0),
            )
        grid = tuner.fit()
        results = [grid[number] for number in range(len(grid))]
    manifest = read_manifest(prepared)
    rows = []
    for result in results:
        assert result.config is not None
        widths = result.config["widths"]
        network = build_network(params.model, widths, manifest)
        row: dict[str, Any] = {"widths": widths, "parameters": count_parameters(network)}
        if result.error:
            rows.append(row | {"status": f"failed: {str(result.error).strip().splitlines()[-1]}"})
            continue
        metrics = result.metrics or {}
        ious = {f"L{d}": metrics[f"val_iou_L{d}"] for d in network.depths}
        best = max(ious, key=lambda depth: ious[depth])
        row |= {"status": "done", "seconds": round(metrics["time_total_s"], 1), "best_depth": best}
        rows.append(row | {"best_iou": ious[best]} | {f"val_iou_{depth}": iou for depth, iou in ious.items()})
    rows.sort(key=lambda row: search.widths.index(tuple(row["widths"])))  # a restored search has another order
    if all(row["status"] != "done" for row in rows):
        raise UserError("every trial failed: " + "; ".join(f"{row['widths']} {row['status']}" for row in rows))
    return rows


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The candidate with the highest val IoU at any of its depths; of equals, the one with fewer parameters."""
    done = [row for row in rows if row["status"] == "done"]
    return max(done, key=lambda row: (row["best_iou"], -row["parameters"]))


def search(params: Params, prepared: Path, runs: Path, out: Path, trials: Path) -> None:
    """Write `out` (the winner's widths) and `trials` (a row a candidate)."""
    candidates = list(dict.fromkeys(params.search.widths))
    params = params.model_copy(update={"search": params.search.model_copy(update={"widths": tuple(candidates)})})
    began = time.monotonic()
    if len(candidates) == 1:
        rows: list[dict[str, Any]] = [{"widths": list(candidates[0]), "status": "the only candidate: no trial"}]
        winner, why = rows[0], "the only candidate in params.yaml"
    else:
        rows = run_trials(params, prepared, runs)
        winner = choose(rows)
        why = (
            f"the best of {len(rows)} candidates after {params.search.epochs} epochs: "
            f"val IoU {winner['best_iou']:.4f} at depth {winner['best_depth']}"
        )
    columns = ["widths", "parameters", "status", "seconds", "best_depth", "best_iou"]
    columns += [f"val_iou_L{d}" for d in range(1, MAX_DEPTH + 1) if any(f"val_iou_L{d}" in row for row in rows)]
    with replacing(trials) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        for row in rows:
            table.writerow(row | {"widths": " ".join(map(str, row["widths"]))})
    with replacing(out) as partial:
        partial.write_text(f"# {why}\n" + yaml.safe_dump({"widths": list(winner["widths"])}, default_flow_style=None))
    for row in rows:
        shown = f"best val IoU {row['best_iou']:.4f} at {row['best_depth']}" if "best_iou" in row else row["status"]
        print(f"widths {row['widths']}: {shown}")
    print(f"chosen: {winner['widths']}, {why} ({time.monotonic() - began:.0f} s); wrote {out}, {trials}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.search", description=__doc__)
    for name in ("prepared", "runs", "out", "trials"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    paths, params = vars(parser.parse_args()), load_params()
    if address := address_of(params):
        run_remotely("search", params, address, paths)
    else:
        search(params, **paths)


if __name__ == "__main__":
    run_command(main)
