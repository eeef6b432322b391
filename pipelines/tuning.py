"""The trials of a search on Ray Tune: searchers, schedulers, the time limit, going on after a cut.

Beside pipelines/trials.py the one file that imports ray.tune.
"""

import json
import os
import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.costs import Costs
from pipelines.front import Trial
from pipelines.run_store import ASK_EVERY_S, FolderRun, RunStore, open_store
from pipelines.sections import S3
from pipelines.settings import run_name
from pipelines.space import Config, Space, decode, mutable
from pipelines.storage import open_file_system
from pipelines.trials import COST, METRIC, distributed_trial, settings_of, trial
from unetpp.checkpoint import DamagedCheckpointError, load_checkpoint
from unetpp.errors import UserError

# Trials' working folders are Ray's business; theirs is the path that Ray keeps results under.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Seconds between what Tune writes down of the search: after a kill, trials that began since are not known.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")

from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator


class Deadline(tune.Stopper):
    """Ends the search when its hours are over, those of earlier commands counted in."""

    def __init__(self, hours: float, runs: RunStore, file: str):
        self._seconds, self._runs, self._file = hours * 3600, runs, file
        self._every_s = 1 if isinstance(runs, FolderRun) else ASK_EVERY_S
        self._began: float | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_began": None}

    def __call__(self, trial_id: str, result: dict) -> bool:
        return False

    def stop_all(self) -> bool:
        now = time.monotonic()
        if self._began is None:
            self._began = now - spent_s(self._runs, self._file)
            self._noted = 0.0
        over = now - self._began >= self._seconds
        if over or now - self._noted > self._every_s:
            self._noted = now
            self._runs.write(self._file, json.dumps({"spent_s": now - self._began}).encode())
        return over


def spent_s(runs: RunStore, file: str) -> float:
    """Seconds that earlier commands of the same search have taken."""
    return json.loads(runs.read(file) or '{"spent_s": 0}')["spent_s"]


class Points(BasicVariantGenerator):
    """The points of a space as trials, at most `at_once` of them unfinished; 0 = all.

    Tune itself ignores max_concurrent_trials for a generator like this one, and keeps what it knows of a generator and
    of the trials in two files: after a kill one may be older. The trials' file decides here, else a trial could be lost
    or one waited for that there is not.
    """

    def __init__(self, points: list[Config], at_once: int):
        super().__init__(points_to_evaluate=points, constant_grid_search=True, max_concurrent=at_once)
        self._known: set[str] = set()

    def next_trial(self):
        while True:
            unfinished = set(self._live_trials)
            found = super().next_trial()
            if found is None or found.trial_id not in self._known:
                return found
            self._live_trials = unfinished

    def restore_from_dir(self, dirpath: str) -> None:
        super().restore_from_dir(dirpath)
        newest = max(Path(dirpath).glob("experiment_state-*.json"))
        trials = [json.loads(state) for state, _ in json.loads(newest.read_text())["trial_data"]]
        self._known = {one["trial_id"] for one in trials}
        self._live_trials = {one["trial_id"] for one in trials if one["status"] != "TERMINATED"}
        self._finished = False
        for iterator in self._iterators:  # from the first point again; known ones are passed over
            iterator.points_to_evaluate = [dict(point) for point in self._points_to_evaluate]
            iterator.num_samples_left, iterator.counter, iterator.variants = iterator.num_samples, 0, None


class Progress(tune.Callback):
    """A line whenever a trial has an epoch done, or ends without."""

    def on_trial_result(self, iteration, trials, trial, result, **info):
        known = {key: value for key, value in result.items() if key.startswith("best_val_iou_L")}
        best = max(known, key=lambda key: known[key])[13:] if known else ""
        said = f"val IoU {result[METRIC]:.4f} at {best} so far" if known else result.get("dead", "")
        print(f"trial {trial.trial_id}: epoch {result['epoch']}, {said}", flush=True)

    def on_trial_error(self, iteration, trials, trial, **info):
        print(f"trial {trial.trial_id}: failed", flush=True)


def make_searcher(space: Space):
    """What proposes configs, and the number of trials."""
    search = space.params.search
    configs = space.configs()
    if configs is not None:
        # PBT compares its whole population, whose trials take turns where they do not fit beside each other.
        at_once = 0 if search.scheduler == "pbt" else search.max_concurrent
        return Points([dict(config) for config in configs], at_once), len(configs)
    try:
        import optuna
    except ImportError:
        raise UserError(
            f"search.searcher is {search.searcher}, which needs Optuna: pip install 'unetpp[search]', or take grid or "
            "random"
        ) from None
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    startup = max(2, min(10, (search.num_trials or 1) // 3))  # drawn at random first
    if search.searcher == "nsga2":
        population = max(2, min(50, (search.num_trials or 1) // 4))
        sampler: Any = optuna.samplers.NSGAIISampler(seed=search.seed, population_size=population)
    else:
        sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=startup)
    front = search.objective == "front"
    searcher = OptunaSearch(
        metric=[METRIC, COST] if front else METRIC, mode=["max", "min"] if front else "max", sampler=sampler
    )
    # In batches: else what Optuna knows when it is asked would depend on which trial happened to end first.
    return ConcurrencyLimiter(searcher, max_concurrent=search.max_concurrent, batch=True), search.num_trials


def make_scheduler(space: Space):
    """What ends trials early or changes them; None lets each train to its end.

    All compare the best depth so far after the same number of epochs.
    """
    from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

    search = space.params.search
    both: dict[str, Any] = {"time_attr": "epoch", "metric": METRIC, "mode": "max"}
    if search.scheduler == "asha":
        return ASHAScheduler(
            max_t=search.epochs, grace_period=search.grace_epochs, reduction_factor=search.reduction, **both
        )
    if search.scheduler == "pbt":
        domains = {key: _domain(space.dimensions[key]) for key in mutable(space)}
        ranges = {key: one for key, one in space.dimensions.items() if isinstance(one, dict)}
        return PopulationBasedTraining(
            perturbation_interval=search.grace_epochs,
            hyperparam_mutations=domains,
            custom_explore_fn=partial(_clip, ranges=ranges),
            synch=True,  # so that the same seed gives the same trials
            log_config=False,
            **both,
        )
    return None


def _domain(dimension: list[str] | dict[str, list]):
    if isinstance(dimension, list):
        return dimension
    kind, (low, high) = next(iter(dimension.items()))
    make = {"uniform": tune.uniform, "log": tune.loguniform, "int": lambda low, high: tune.randint(low, high + 1)}
    return make[kind](low, high)


def _clip(config: Config, ranges: dict[str, dict[str, list]]) -> Config:
    """PBT steps by a fifth up or down, and may step out of a range."""
    for key, one in ranges.items():
        low, high = next(iter(one.values()))
        config[key] = min(max(config[key], low), high)
    return config


def has_begun(runs: str, name: str, s3: S3) -> bool:
    """Whether an earlier command has begun this very search."""
    folder, file_system = open_file_system(f"{runs}/{name}", s3)
    return tune.Tuner.can_restore(folder, file_system)


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
    folder, file_system = open_file_system(runs, s3)
    if has_begun(runs, name, s3):
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
            param_space={key: _as_domain(one) for key, one in space.dimensions.items()},
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
                callbacks=[Progress()],
                checkpoint_config=tune.CheckpointConfig(num_to_keep=None if search.scheduler == "pbt" else 2),
            ),
        )
    grid = tuner.fit()
    over = bool(search.max_hours) and spent_s(kept, hours_file) >= (search.max_hours or 0) * 3600
    trials = [read_trial(grid[number], space, over) for number in range(len(grid))]
    return in_order([one for one in trials if one.config], space)  # without: it never began


def _as_domain(dimension):
    return tune.choice(dimension) if isinstance(dimension, list) else _domain(dimension)


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


def rungs(space: Space) -> set[int]:
    """The epochs after which ASHA compares."""
    search = space.params.search
    found, epoch = set(), float(search.grace_epochs)
    while epoch <= search.epochs:
        found.add(int(np.ceil(epoch)))
        epoch *= search.reduction
    return found


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
