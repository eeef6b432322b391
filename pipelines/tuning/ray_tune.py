"""The trials of a search on Ray Tune: running them, going on after a cut, reading what Tune kept of them."""

import json
import os
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from pipelines.core.data_sections import S3
from pipelines.storage.places import replace_files
from pipelines.storage.run_store import RunStore, open_store
from pipelines.storage.s3 import open_file_system
from pipelines.training.spec import run_name
from pipelines.tuning.algorithms import Deadline, domain, make_scheduler, make_searcher, rungs, spent_s
from pipelines.tuning.candidate_costs import Costs
from pipelines.tuning.pareto import Trial
from pipelines.tuning.space import Space, decode
from pipelines.tuning.trials import METRIC, distributed_trial, settings_of, trial
from unetpp.errors import UserError
from unetpp.training.checkpoint import DamagedCheckpointError, load_checkpoint

# Trials' working folders are Ray's business; theirs is the path that Ray keeps results under.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Seconds between what Tune writes down of the search: after a kill, trials that began since are not known.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")

SNAPSHOT = "snapshot"  # beside Tune's own files of a search
TUNER = "tuner.pkl"  # Tune's own file: what a search was begun with


class Progress(tune.Callback):
    """A line whenever a trial has an epoch done, or ends without."""

    def on_trial_result(self, iteration, trials, trial, result, **info):
        known = {key: value for key, value in result.items() if key.startswith("best_val_iou_L")}
        best = max(known, key=lambda key: known[key])[13:] if known else ""
        said = f"val IoU {result[METRIC]:.4f} at {best} so far" if known else result.get("dead", "")
        print(f"trial {trial.trial_id}: epoch {result['epoch']}, {said}", flush=True)

    def on_trial_error(self, iteration, trials, trial, **info):
        print(f"trial {trial.trial_id}: failed", flush=True)


class Snapshot(tune.Callback):
    """Keeps what Tune knows of a search as one file, written whole.

    Tune's own files are several, which a thread of it copies one by one and in place: a kill leaves an empty one, or
    some of which one knows of a trial and another does not.
    """

    def __init__(self, search: RunStore):
        self._search, self._newest, self._tuner = search, 0, b""

    def on_step_end(self, iteration, trials, **info):
        self._keep(trials)

    def on_experiment_end(self, trials, **info):
        self._keep(trials)

    def _keep(self, trials: list) -> None:
        storage = trials[0].storage if trials else None
        if storage is None:
            return
        folder = Path(storage.experiment_driver_staging_path)
        newest = max((path.stat().st_mtime_ns for path in folder.glob("experiment_state-*.json")), default=0)
        if newest == self._newest:
            return
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        if not self._tuner:
            with storage.storage_filesystem.open_input_file(f"{storage.experiment_fs_path}/{TUNER}") as opened:
                self._tuner = opened.readall()
        self._search.write(SNAPSHOT, pickle.dumps(files | {TUNER: self._tuner}))
        self._newest = newest


def has_begun(runs: str, name: str, s3: S3) -> bool:
    """Whether an earlier command has begun this very search."""
    return open_store(f"{runs}/{name}", s3).read(SNAPSHOT) is not None


def run_trials(space: Space, settings: dict[str, Any], costs: Costs, runs: str, name: str) -> list[Trial]:
    """Train the trials of a space on the connected cluster; a search that was cut goes on by its name.

    Args:
        runs: where it is kept, a path or s3://bucket/prefix.
    """
    search, train = space.params.search, space.params.train
    random.seed(search.seed)  # PBT draws from these
    np.random.seed(search.seed)
    common: dict[str, Any] = {"settings": settings, "params": space.params, "costs": costs}
    if search.num_workers == 1:
        resources: Any = {"CPU": search.cpus_per_worker} | ({"GPU": 1} if train.use_gpu else {})
        trainable: Any = tune.with_parameters(trial, **common)
    else:
        # The driver only waits for its workers. A share of a core for it could starve them for ever.
        resources = {"trial_driver": 1}
        trainable = tune.with_parameters(distributed_trial, **common, runs=runs)
    trainable = tune.with_resources(trainable, resources)
    s3 = space.params.ingest.s3
    kept, hours_file = open_store(runs, s3), f"{name}.json"
    of_search = open_store(f"{runs}/{name}", s3)
    folder, file_system = open_file_system(runs, s3)
    if snapshot := of_search.read(SNAPSHOT):
        replace_files(of_search.place, pickle.loads(snapshot))
        print(f"{runs}/{name}: the search goes on; finished trials are not run again", flush=True)
        tuner = tune.Tuner.restore(
            f"{folder}/{name}",
            trainable,
            resume_unfinished=True,
            resume_errored=True,
            storage_filesystem=file_system,
        )
    else:
        searcher, num_samples = make_searcher(space)
        deadline = Deadline(search.max_hours, kept, hours_file) if search.max_hours else None
        tuner = tune.Tuner(
            trainable,
            param_space={key: domain(one) for key, one in space.dimensions.items()},
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=make_scheduler(space),
                num_samples=num_samples or 1,
                trial_dirname_creator=_folder_of,
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=folder,
                storage_filesystem=file_system,
                verbose=0,
                stop=deadline,
                callbacks=[Progress(), Snapshot(of_search)],
                checkpoint_config=tune.CheckpointConfig(num_to_keep=None if search.scheduler == "pbt" else 2),
            ),
        )
    grid = tuner.fit()
    over = bool(search.max_hours) and spent_s(kept, hours_file) >= (search.max_hours or 0) * 3600
    trials = [read_trial(grid[number], space, over) for number in range(len(grid))]
    return in_order([one for one in trials if one.config], space)  # without: it never began


def _folder_of(one) -> str:
    return f"trial-{one.trial_id}"


def read_trial(result, space: Space, over: bool) -> Trial:
    """One trial from what Ray Tune kept of it."""
    frame, metrics = result.metrics_dataframe, result.metrics or {}
    rows = [] if frame is None else frame.to_dict("records")
    curve: dict[int, dict] = {}
    best: dict[str, float] = {}
    for row in rows:
        if row.get("epoch", 0) > 0 and row.get("val_iou") == row.get("val_iou"):  # a dead row has no val_iou: NaN
            curve[int(row["epoch"])] = row
        known = {key[13:]: value for key, value in row.items() if key.startswith("best_val_iou_L")}
        best |= {name: float(value) for name, value in known.items() if value == value}
    epochs = max(curve, default=0)
    config = decode({key: value for key, value in _config_of(result).items() if key in space.dimensions})
    status, reason = "done", ""
    dead = metrics.get("dead")
    if result.error:
        status, reason = "failed", why_failed(result.error)
    elif isinstance(dead, str):
        status, reason = "failed", dead
    elif epochs < space.params.search.epochs:
        status, reason = "stopped", f"by search.max_hours after {epochs} epochs"
        if space.params.search.scheduler == "asha" and epochs and not (over and epochs not in rungs(space)):
            reason = f"early by ASHA after {epochs} epochs"
    began = rows[0].get("timestamp", 0.0) if rows else float("inf")
    seconds = max((float(row.get("time_total_s", 0.0)) for row in rows), default=0.0)
    return Trial(
        0, config, status, reason, seconds, [curve[key] for key in sorted(curve)], best, began, result.checkpoint
    )


def _config_of(result) -> dict[str, Any]:
    """What a trial was to train: in its reports, or in the file that it began with where it made none."""
    if result.config:
        return result.config
    file = f"{result.path}/params.json"
    if not result.filesystem.get_file_info(file).is_file:
        return {}
    with result.filesystem.open_input_stream(file) as opened:
        return json.loads(opened.read())


def why_failed(error: Exception) -> str:
    """The reason in one line, from what Ray says at length."""
    text = str(error).strip()
    if "OutOfMemory" in text or "memory pressure" in text:
        return "out of memory: Ray ended the process, since the machine's memory was nearly full"
    if "died" in text or "SIGKILL" in text:
        return "the process was killed from outside, or died without a word"
    return text.splitlines()[-1] if text else type(error).__name__


def in_order(trials: list[Trial], space: Space) -> list[Trial]:
    """Numbered by the order of the space, or of their beginning where it has none; a restored search has another."""
    configs = [decode(config) for config in space.configs() or []]
    if space.params.search.scheduler != "pbt" and all(one.config in configs for one in trials):
        ordered = sorted(trials, key=lambda one: configs.index(one.config))
    else:
        # Ray's clock counts whole seconds: of trials that began together, a restored search knows no order either.
        ordered = sorted(trials, key=lambda one: (one.began, json.dumps(one.config, sort_keys=True)))
    return [replace(one, number=number) for number, one in enumerate(ordered, start=1)]


def best_weights(chosen: Trial, space: Space, settings: dict[str, Any], runs: str) -> dict[str, Any]:
    """The weights of a trial's best epoch by the mean of its depths, as train takes its own."""
    if space.params.search.num_workers > 1:
        config = {key: json.dumps(value) for key, value in chosen.config.items()}
        name = run_name("trial", settings_of(settings, space.params, config))
        state, _ = open_store(f"{runs}/{name}", space.params.ingest.s3).newest()
        return state["best"]["weights"]
    assert chosen.checkpoint is not None
    try:
        with chosen.checkpoint.as_directory() as folder:
            return load_checkpoint(Path(folder))["best"]["weights"]
    except DamagedCheckpointError as error:
        raise UserError(f"{error}; train.init is search and needs it: remove {runs} and search again") from None
