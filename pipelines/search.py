"""The search stage: chooses widths, depth, and the other values of section search; train uses the choice.

A deeply supervised trial of depth D measures D networks, so that depth needs no separate trials. The cost of each is
measured in advance, the cost of the search is estimated in advance, and an interrupted command resumes.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from pipelines import detail
from pipelines.cluster.jobs import address_of, run_remotely
from pipelines.cluster.ray_cluster import check_fits, cluster, how_many_fit
from pipelines.core.command import run_command
from pipelines.core.files import write_json
from pipelines.core.outputs import check_outputs
from pipelines.core.params import Params, load_params, override
from pipelines.core.temporary_folders import scratch
from pipelines.storage.encoder_weights import find_encoder_weights
from pipelines.storage.node_cache import share
from pipelines.storage.run_store import open_store, runs_at
from pipelines.training.begin import begin_with, read_begin, write_begin
from pipelines.training.spec import build_network, make_spec, run_name
from pipelines.tuning.candidate_costs import Costs, check_budget, check_memory, count_costs, describe, measure_costs
from pipelines.tuning.pareto import Trial, choose, mark_front, measured, name
from pipelines.tuning.probe import announce
from pipelines.tuning.results import page_facts, points_of, write_architecture, write_tables
from pipelines.tuning.space import Space, read_space
from unetpp.data.manifest import Manifest, read_manifest
from unetpp.errors import UserError
from unetpp.images.frame import as_size
from unetpp.models.model_file import load_model

INIT_STORE = "UNETPP_INIT_STORE"  # the registry of train.init if it is not this folder's: `unetpp reproduce`


def fetch_init(asked: str | None, folder: Path) -> Path | None:
    """The model that `train.init` names, fetched into a folder below `folder`; None if it names none.

    Raises:
        UserError: no such model, or a damaged one.
    """
    if asked in (None, "search"):
        return None
    if asked.startswith("models:"):
        from pipelines.registry.load import load_trained

        uri, trained = load_trained(asked, os.environ.get(INIT_STORE))
    else:
        uri, trained = asked, load_model(asked)
    write_begin(folder / "init", trained, asked, uri)
    return folder / "init"


def search(params: Params, prepared: Path, runs: Path, out: Path, reports: Path, init: Path | None = None) -> None:
    """Write `out` (architecture.yaml; init.pt if train needs it) and `reports`: two tables, page.json.

    Args:
        init: what `fetch_init` returned.

    Raises:
        UserError: the space is empty or has an illegal value, no candidate meets the budget, widths do not fit in
            memory, the cluster is too small, or every trial failed.
    """
    began = time.monotonic()
    space, manifest = read_space(params), read_manifest(prepared)
    if "RAY_ADDRESS" not in os.environ and not params.train.use_gpu:
        check_memory(space, manifest, psutil.virtual_memory().available / 2**20, "this machine")
    begin = read_begin(init) if init else None
    for one in space.networks if begin else ():
        assert begin is not None
        begin_with(begin, one.params, one.widths, manifest)
    encoders = load_encoders(space, manifest)
    size = as_size(params.search.size_px) or as_size(manifest.size) or (256, 256)
    costs = count_costs(space, manifest, size)
    fitting = check_budget(space, costs)
    if space.is_single:
        only = Trial(1, space.candidates[0].values, "none", "the only candidate: no trial")
        points, trials, weights = points_of([only], space, costs), [], None
        chosen, reason, others = points[-1], "the only candidate in params.yaml: no trial", []
    else:
        device = torch.device("cuda" if params.train.use_gpu and torch.cuda.is_available() else "cpu")
        at = runs_at(params, runs)
        costs = measure_costs(fitting, costs, manifest, size, device, open_store(at, params.ingest.s3))
        fitting = check_budget(fitting, costs)
        trials, weights_of = run_search(fitting, prepared, manifest, costs, at, encoders)
        trials += _left_out(space, fitting, max((one.number for one in trials), default=0))
        points = points_of(trials, space, costs)
        mark_front(points, params.search.cost)
        if not measured(points):
            raise UserError("every trial failed: " + "; ".join(f"{one.config}: {one.reason}" for one in trials))
        chosen, reason, others = choose(points, params.search)
        weights = weights_of(chosen["trial"]) if params.train.init == "search" else None
    origin = None
    if begin:
        _, origin = begin
        widths = tuple(map(int, chosen["widths"].split()))
        weights, anew = begin_with(begin, override(params, chosen["params"]), widths, manifest)
        heads = f"; the heads of {', '.join(f'L{depth}' for depth in anew)} start from random weights" if anew else ""
        print(f"train starts from {origin.uri}, sha256 {origin.sha256[:12]} (train.init={origin.asked}){heads}")
    chosen["chosen"] = 1
    write_tables(points, trials, space, reports)
    write_json(reports / "page.json", page_facts(points, trials, chosen, reason, others, space, manifest, size))
    write_architecture(out, chosen, reason, others, weights, origin)
    for point in points:
        said = f"val IoU {point['val_iou']:.4f}" if point["val_iou"] is not None else "no val IoU"
        said += f" ({point['status']}: {point['reason']})" if point["reason"] else ""
        detail(f"trial {point['trial']}: {name(point)}: {said}, {describe(point)}")
    print(f"search: chosen: {name(chosen)}, {reason}")
    detail(f"wrote {out}, {reports}, after {time.monotonic() - began:.0f} s")


def load_encoders(space: Space, manifest: Manifest) -> list[str]:
    """The sha256 of all initial weights of encoders; each has been loaded into the deepest network of the space.

    Raises:
        UserError: weights that are not there, or are of another encoder.
    """
    deepest = max(space.networks, key=lambda one: len(one.widths)).widths
    models = {(one.params.model.encoder, one.params.model.initial_weights): one.params.model for one in space.networks}
    found = []
    for model in models.values():
        if weights := find_encoder_weights(model):
            weights.load(build_network(model, deepest, manifest))
            found.append(weights.sha256)
    return found


def run_search(
    space: Space, prepared: Path, manifest: Manifest, costs: Costs, runs: str, encoders: list[str]
) -> tuple[list[Trial], Callable[[int], dict]]:
    """The trials of the space, kept at `runs`, and a function that returns the weights of one of them by its number.

    Args:
        encoders: what `load_encoders` returned.
    """
    params, search = space.params, space.params.search
    spec = make_spec(params, (), prepared, manifest, share(params, prepared, manifest))
    # Its name depends on what determines the trials and their results: another budget chooses again among the same.
    unused = {"widths", "grow", "space", "budget", "tolerance_iou", "size_px"}
    unused |= {"objective", "cost"} if search.searcher in ("grid", "random") else set()
    facts = [space.dimensions, search.model_dump(mode="json", exclude=unused), *encoders]
    search_name = run_name("search", spec, facts)
    at_once = min(search.max_concurrent, space.num_trials)
    with cluster():
        from pipelines.tuning.ray_tune import Trials, run_trials  # imports Ray, whose switches `cluster` sets

        check_fits(
            f"search.max_concurrent = {at_once} trials at once",
            at_once * search.num_workers,
            search.cpus_per_worker,
            params.train.use_gpu,
            "lower search.max_concurrent, search.num_workers or search.cpus_per_worker",
        )
        if search.scheduler == "pbt":  # its whole population takes turns
            at_once = min(space.num_trials, how_many_fit(search.cpus_per_worker, params.train.use_gpu))
        kept = Trials(space, costs, f"{runs}/{search_name}")
        if not kept.has_begun:
            print(announce(space, spec, costs, at_once), flush=True)
        trials = run_trials(kept, spec)
    return trials, lambda number: kept.weights(next(one for one in trials if one.number == number))


def _left_out(space: Space, fitting: Space, after: int) -> list[Trial]:
    """Networks that got no trial, since none of their depths is within the budget."""
    why = "no depth is within search.budget: no trial"
    left_out = [one.values for one in space.networks if one.widths not in fitting.widths]
    return [Trial(after + number, values, "left out", why) for number, values in enumerate(left_out, start=1)]


def main() -> None:
    # If a trial fails, the table has its reason; here Tune would print its own traceback.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(prog="unetpp stage search", description=__doc__)
    for one in ("prepared", "runs", "out", "reports"):
        parser.add_argument(f"--{one}", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="for a job: the model that its sender fetched for train.init")
    paths, params = vars(parser.parse_args()), load_params()
    reports = [paths["reports"] / name for name in ("search.csv", "curves.csv", "page.json")]
    check_outputs([paths["out"]], reports, [paths["prepared"]])
    with scratch() as folder:
        if paths["init"] is None:
            paths["init"] = fetch_init(params.train.init, folder)
        paths = {name: path for name, path in paths.items() if path}
        if address := address_of(params):
            run_remotely("search", params, address, paths)
        else:
            search(params, **paths)


if __name__ == "__main__":
    run_command(main)
