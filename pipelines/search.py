"""The search stage: which widths, which depth, and what else section search declares; the choice flows to train.

A deeply supervised trial of depth D measures D networks, so that depth costs no trial of its own. What each costs to
run is known before, what the search will take is said before, and a command that was cut goes on.
"""

import argparse
import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from pipelines.cluster.jobs import address_of, run_remotely
from pipelines.cluster.ray_cluster import check_fits, cluster, how_many_fit
from pipelines.core.command import run_command
from pipelines.core.files import replacing, write_json
from pipelines.core.params import Params, load_params
from pipelines.storage.node_cache import share
from pipelines.storage.run_store import open_store, runs_at
from pipelines.training.spec import make_settings, run_name
from pipelines.tuning.candidate_costs import (
    Costs,
    check_budget,
    check_memory,
    count_costs,
    describe,
    key_of,
    measure_costs,
)
from pipelines.tuning.page_facts import page_facts
from pipelines.tuning.pareto import Point, Trial, choose, mark_front, measured, name
from pipelines.tuning.probe import estimate, probe
from pipelines.tuning.space import Space, decode, read_space
from unetpp.data.manifest import Manifest, read_manifest
from unetpp.errors import UserError

INIT = "init.pt"
COLUMNS = ("trial", "widths", "depth", "val_iou", "parameters", "macs", "latency_ms", "memory_mib")
COLUMNS += ("status", "reason", "seconds", "epochs", "on_front", "chosen")


def search(params: Params, prepared: Path, runs: Path, out: Path, reports: Path) -> None:
    """Write `out` (architecture.yaml; init.pt where train asks for it) and `reports`: two tables, page.json.

    Raises:
        UserError: the space is empty or has a value that is not legal, a budget that no candidate meets, widths that
            cannot fit the memory, a cluster that is too small, or every trial failed.
    """
    began = time.monotonic()
    space, manifest = read_space(params), read_manifest(prepared)
    if "RAY_ADDRESS" not in os.environ and not params.train.use_gpu:
        check_memory(space, manifest, psutil.virtual_memory().available / 2**20, "this machine")
    size_px = params.search.size_px or manifest.size or 256
    costs = count_costs(space, manifest, size_px)
    fitting = check_budget(space, costs)
    if space.is_single:
        points, trials = _points_of([Trial(1, _only(space), "none", "the only candidate: no trial")], space, costs), []
        chosen, reason, others = points[-1], "the only candidate in params.yaml: no trial", []
        weights = None
    else:
        device = torch.device("cuda" if params.train.use_gpu and torch.cuda.is_available() else "cpu")
        at = runs_at(params, runs)
        costs = measure_costs(fitting, costs, manifest, size_px, device, open_store(at, params.ingest.s3))
        fitting = check_budget(fitting, costs)
        trials, weights_of = run_search(fitting, prepared, manifest, costs, at)
        trials += _left_out(space, fitting, len(trials))
        points = _points_of(trials, space, costs)
        mark_front(points, params.search.cost)
        if not measured(points):
            raise UserError("every trial failed: " + "; ".join(f"{one.config}: {one.reason}" for one in trials))
        chosen, reason, others = choose(points, params.search)
        weights = weights_of(chosen["trial"]) if params.train.init == "search" else None
    chosen["chosen"] = 1
    write_tables(points, trials, space, reports)
    write_json(reports / "page.json", page_facts(points, trials, chosen, reason, others, space, manifest, size_px))
    write_architecture(out, chosen, reason, others, params, weights)
    for point in points:
        said = f"val IoU {point['val_iou']:.4f}" if point["val_iou"] is not None else "no val IoU"
        said += f" ({point['status']}: {point['reason']})" if point["reason"] else ""
        print(f"trial {point['trial']}: {name(point)}: {said}, {describe(point)}")
    print(f"chosen: {name(chosen)}, {reason} ({time.monotonic() - began:.0f} s); wrote {out}, {reports}")


def run_search(space: Space, prepared: Path, manifest: Manifest, costs: Costs, runs: str) -> tuple[list[Trial], Any]:
    """The trials of the space, kept at `runs`, and what gives the weights of one of them by its number."""
    from pipelines.tuning.ray_tune import best_weights, has_begun, run_trials

    params, search = space.params, space.params.search
    settings = make_settings(params, [], prepared)
    settings["shared"] = share(params, prepared, settings["manifest"])
    # Its name holds what decides which trials there are and how they end: another budget chooses anew among the same.
    unused = {"widths", "grow", "space", "budget", "tolerance_iou", "size_px"}
    unused |= {"objective", "cost"} if search.searcher in ("grid", "random") else set()
    decisive = [space.dimensions, search.model_dump(mode="json", exclude=unused)]
    search_name = run_name("search", settings | {"widths": decisive})
    at_once = min(search.max_concurrent, space.num_trials())
    with cluster():
        check_fits(
            f"search.max_concurrent = {at_once} trials at once",
            at_once * search.num_workers,
            search.cpus_per_worker,
            params.train.use_gpu,
            "lower search.max_concurrent, search.num_workers or search.cpus_per_worker",
        )
        if search.scheduler == "pbt":  # its whole population takes turns on what there is
            at_once = min(space.num_trials(), how_many_fit(search.cpus_per_worker, params.train.use_gpu))
        if not has_begun(runs, search_name, params.ingest.s3):
            said = announce(space, settings, manifest, costs, at_once)
            print(said, flush=True)
        trials = run_trials(space, settings, costs, runs, search_name)
    return trials, lambda number: best_weights(trials[number - 1], space, settings, runs)


def announce(space: Space, settings: dict, manifest: Manifest, costs: Costs, at_once: int) -> str:
    """What the search will take; refuses one that the memory of the machines cannot hold.

    Raises:
        UserError: with what it needs and what there is.
    """
    import ray

    elsewhere = "RAY_ADDRESS" in os.environ or space.params.train.use_gpu
    if not elsewhere:
        run = probe
        there = psutil.virtual_memory().available / 2**20
    else:
        search = space.params.search
        remote = ray.remote(num_cpus=search.cpus_per_worker, num_gpus=int(space.params.train.use_gpu))(probe)

        def run(settings: dict) -> dict[str, float]:
            return ray.get(remote.remote(settings))

        nodes = [node["Resources"].get("memory", 0) / 2**20 for node in ray.nodes() if node["Alive"]]
        there = sum(nodes)
        if not space.params.train.use_gpu:
            check_memory(space, manifest, max(nodes), "the largest machine of the cluster")
    found = estimate(space, settings, costs, at_once, run)
    processes = at_once * space.params.search.num_workers
    if not space.params.train.use_gpu and found.memory_mib * processes > there:
        what, advice = f"search.max_concurrent = {at_once}", "lower search.max_concurrent"
        if space.params.search.scheduler == "pbt":
            what, advice = f"search.scheduler pbt, {at_once} trials at once", "raise search.cpus_per_worker"
        raise UserError(
            f"{what}: {processes} processes of {found.memory_mib:,.0f} MiB, as a probe of the largest took, need more "
            f"than the {there:,.0f} MiB that are free: {advice}"
        )
    hours = space.params.search.max_hours
    limit = f"; search.max_hours ends it after {hours:g} h with the best so far" if hours else ""
    return f"search: {found}{limit}"


def _only(space: Space) -> dict[str, Any]:
    return {key: json.loads(one[0]) for key, one in space.dimensions.items() if isinstance(one, list)}


def _left_out(space: Space, fitting: Space, after: int) -> list[Trial]:
    """Networks that got no trial, since no depth of them is within the budget."""
    why = "no depth is within search.budget: no trial"
    configs = [decode(one) for one in space.networks() if tuple(decode(one)["widths"]) not in fitting.widths]
    return [Trial(after + number, config, "left out", why) for number, config in enumerate(configs, start=1)]


def _points_of(trials: list[Trial], space: Space, costs: Costs) -> list[Point]:
    """A point for each trial and depth."""
    points = []
    for trial in trials:
        config = {key: json.dumps(value) for key, value in trial.config.items()}
        searched = {key: trial.config[key] for key in space.searched if key in trial.config}
        shared = {"trial": trial.number, "widths": " ".join(map(str, trial.config["widths"])), "params": searched}
        for depth, cost in costs[key_of(space, config)].items():
            points.append(
                shared
                | {"depth": depth, "val_iou": trial.best.get(depth), "latency_ms": None, "memory_mib": None}
                | cost
                | {"status": trial.status, "reason": trial.reason, "seconds": round(trial.seconds, 1)}
                | {"epochs": len(trial.curve), "on_front": 0, "chosen": 0}
            )
    return points


def write_tables(points: list[Point], trials: list[Trial], space: Space, reports: Path) -> None:
    """search.csv with a row a trial and depth, curves.csv with a row a trial, epoch and depth."""
    with replacing(reports / "search.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [*COLUMNS, *space.searched], restval="", extrasaction="ignore")
        table.writeheader()
        for point in points:
            iou = {} if point["val_iou"] is None else {"val_iou": f"{point['val_iou']:.6f}"}
            table.writerow(point | iou | point["params"])
    with replacing(reports / "curves.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["trial", "epoch", "depth", "val_iou"])
        for trial in trials:
            for row in trial.curve:
                for depth in trial.best:
                    table.writerow([trial.number, int(row["epoch"]), depth, f"{row[f'val_iou_{depth}']:.6f}"])


def write_architecture(
    out: Path, chosen: Point, reason: str, others: list[str], params: Params, weights: dict | None
) -> None:
    """architecture.yaml, in which the reason and the runners-up are comments, and the weights beside it."""
    depth = int(chosen["depth"][1:])
    widths = [int(width) for width in chosen["widths"].split()]
    lines = [f"chosen: {name(chosen)}: {reason}"]
    if depth < len(widths) - 1:
        lines.append(
            f"Train takes the whole widths and not the first {depth + 1}: the accuracy of {chosen['depth']} was "
            "measured inside this network, and evaluate and register cut every depth out of it."
        )
    lines += [f"runner-up: {other}" for other in others]
    values: dict[str, Any] = {"widths": widths, "params": chosen["params"]}
    with replacing(out) as folder:
        folder.mkdir()
        if weights is not None:
            torch.save(weights, folder / INIT)
            values["init"] = INIT
        text = "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(
            values, default_flow_style=None, sort_keys=False
        )
        (folder / "architecture.yaml").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.search", description=__doc__)
    for one in ("prepared", "runs", "out", "reports"):
        parser.add_argument(f"--{one}", type=Path, required=True)
    paths, params = vars(parser.parse_args()), load_params()
    if address := address_of(params):
        run_remotely("search", params, address, paths)
    else:
        search(params, **paths)


if __name__ == "__main__":
    run_command(main)
