"""The train stage: train the chosen network, and keep the weights of the epoch with the best validation IoU.

A single worker trains in this process; several workers, or any on a cluster that RAY_ADDRESS names, run on Ray Train.
Rerun the command to resume an interrupted run from its last checkpoint. SIGTERM stops a run with a checkpoint and exit
code 143.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipelines.cluster.jobs import address_of, run_remotely
from pipelines.cluster.ray_cluster import check_fits, cluster
from pipelines.console.machine_load import sampled
from pipelines.core.command import run_command
from pipelines.core.files import check_outputs
from pipelines.core.params import Params, check_levels, load_params, override
from pipelines.registry.live_log import UNLOGGED, logged_live
from pipelines.storage.node_cache import find_file, share
from pipelines.storage.run_store import RunStore, open_store, runs_at
from pipelines.training.architecture import find_init, read_architecture
from pipelines.training.in_process import run_alone
from pipelines.training.ray_worker import STOPPED, reported, run_on_ray
from pipelines.training.results import write_results
from pipelines.training.spec import TrainSpec, make_spec, run_name
from pipelines.training.state import TrainState
from unetpp.data.manifest import read_manifest
from unetpp.errors import UserError
from unetpp.network.masks import MASK
from unetpp.threads import num_cores

TERMINATED = 128 + signal.SIGTERM  # 143, the exit code of a process that SIGTERM stopped


def train(params: Params, prepared: Path, architecture: Path, runs: Path, out: Path, reports: Path) -> None:
    """Train, then write `out/model.safetensors`, `reports/curves.csv` (a row per epoch and depth) and metrics.json.

    Raises:
        UserError: the data or the architecture are missing, the cluster is too small, or training diverged.
    """
    chosen = read_architecture(architecture)
    params = override(params, chosen.params)  # searched params other than widths
    check_levels(params, [chosen.widths])
    manifest = read_manifest(prepared)
    spec = make_spec(params, chosen.widths, prepared, manifest, init=find_init(architecture, chosen, params))
    _check_images(spec)
    name = run_name("train", spec)  # the same for any storage
    run = open_store(f"{runs_at(params, runs)}/{name}", params.ingest.s3)
    state = TrainState.from_dict(run.newest()[0])
    if state.is_finished(params.train.epochs):
        print(f"{run.name}: this training run is already finished; using its result")
    else:
        if state.weights:
            print(f"{run.name}: resuming after epoch {state.epoch} of {params.train.epochs}{state.place}")
        with logged_live(params, name, state.history, reports / UNLOGGED) as log:
            if not _run(params, spec, run, name, log):
                print(f"{run.name}: stopped by SIGTERM with a checkpoint; rerun the command to resume", file=sys.stderr)
                raise SystemExit(TERMINATED)
        found, passed_over = run.newest()
        state = TrainState.from_dict(found)
        if not state.is_finished(params.train.epochs):
            raise RuntimeError(f"{run.name}: found no intact checkpoint of the last epoch: {passed_over}")
    write_results(state, spec, name, out, reports, _find_val(params, spec))


def _find_val(params: Params, spec: TrainSpec) -> Path:
    """The val split at the images' own sizes, on this machine or in this node's cache."""
    name = spec.manifest.full_val
    file = spec.prepared / f"{name}.arrow"
    if file.is_file() or spec.model.targets == MASK:
        return file
    return find_file(share(params, spec.prepared, spec.manifest) or {}, name)


def _check_images(spec: TrainSpec) -> None:
    there, workers = spec.manifest.splits["train"].num_images * spec.train.crops_per_image, spec.train.max_workers
    if there < workers:
        raise UserError(
            f"{spec.prepared}: found {there} training sample(s) for {workers} workers; expected at least one for each: "
            "set train.num_workers to 1, or add images"
        )


def _run(params: Params, spec: TrainSpec, run: RunStore, name: str, log: Callable[[dict], None]) -> bool:
    """Train to the end, here or on Ray; False if SIGTERM stopped it. `log` receives the row of each epoch."""
    train = spec.train
    if train.num_workers == 1 and not os.environ.get("RAY_ADDRESS"):
        cores = num_cores()
        if train.cpus_per_worker > cores:
            raise UserError(
                f"train.cpus_per_worker: found {train.cpus_per_worker}; this machine has {cores} core(s): lower it"
            )
        own_size = {spec.manifest.full_val} - {"val"} if spec.model.targets != MASK else ()
        spec.manifest.check(spec.prepared, "train", "val", *own_size)
        return run_alone(spec, run, log)
    init = spec.init and (Path(spec.init.file), spec.init.sha256)
    spec = replace(spec, shared=share(params, spec.prepared, spec.manifest, init))  # damage is found before Ray starts
    with cluster(), reported(log) as callbacks:
        advice = "lower train.num_workers or train.cpus_per_worker"
        check_fits("train.num_workers", train.min_workers, train.cpus_per_worker, train.use_gpu, advice)
        stopped = run_on_ray(spec, name, run, callbacks)
    if stopped and stopped != STOPPED:
        raise UserError(f"training stopped: {stopped}")
    return not stopped


def main() -> None:
    parser = argparse.ArgumentParser(prog="unetpp stage train", description=__doc__)
    for name in ("prepared", "architecture", "runs", "out", "reports"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    paths, params = vars(parser.parse_args()), load_params()
    reports = [paths["reports"] / name for name in ("curves.csv", "metrics.json", "system.csv", UNLOGGED)]
    check_outputs([paths["out"]], reports, [paths["prepared"], paths["architecture"]])
    if address := address_of(params):
        run_remotely("train", params, address, paths)
        return
    with sampled(paths["reports"] / "system.csv"):
        train(params, **paths)


if __name__ == "__main__":
    run_command(main)
