"""The trials of a search on Ray Tune: running them, and resuming after an interruption.

Each trial has its checkpoints, and each finished one a record: JSON with its own checksum. An interrupted command
resumes from these. Tune's own files are pickles: they are in a temporary folder, and nothing reads them.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from pipelines import is_verbose
from pipelines.console.progress import LOGGED_S
from pipelines.core.temporary_folders import scratch
from pipelines.storage.run_store import open_store
from pipelines.training.epoch_metrics import best_so_far
from pipelines.training.spec import TrainSpec
from pipelines.training.state import TrainState
from pipelines.tuning.algorithms import METRIC, Proposal, make_scheduler, proposals, tell_scheduler
from pipelines.tuning.candidate_costs import Costs
from pipelines.tuning.pareto import Trial
from pipelines.tuning.space import Space, decode
from pipelines.tuning.trials import store_of, trial
from unetpp.errors import UserError

# Ray manages the trials' working folders, and how many start at once.
os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_MAX_PENDING_TRIALS_PG": "200"}
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
# Tune's own Ctrl-C handler ends a search as if it had finished.
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"

HOURS = "hours.json"  # seconds that the commands of a search have taken
EVERY_S = 5  # between two updates of it


class Trials(Searcher):
    """Gives Tune the trials of a search in batches; finished trials of an earlier command are reused."""

    def __init__(self, space: Space, costs: Costs, place: str):
        super().__init__()
        self.space, self.place, self.scheduler = space, place, make_scheduler(space)
        search, self._store = space.params.search, open_store(place, space.params.ingest.s3)
        # PBT compares its whole population, whose trials take turns if they do not fit at once.
        self._at_once = float("inf") if search.scheduler == "pbt" else search.max_concurrent
        files = {name for name in self._store.place.list() if name.startswith("trial-")}
        self.has_begun = bool(files)
        self.ended: dict[str, Trial] = {}
        for name in sorted(one for one in files if one.endswith(".json") and "/" not in one):
            if record := self._record(name):
                self.ended[record.name] = record
                if self.scheduler:
                    tell_scheduler(self.scheduler, record.name, record.curve)
            else:
                print(f"skipped damaged record: {self._store.place.name(name)}", flush=True)
        self._batches = proposals(space, costs, self.ended)
        self._proposed: list[Proposal] = []
        self._waiting: list[Proposal] = []
        self.running: dict[str, Proposal] = {}

    def __reduce__(self):
        return Searcher, ()  # Tune pickles it

    def is_over(self) -> bool:
        """Whether no trial is left; the next batch is requested when the last has ended."""
        while not self._waiting and not self.running:
            batch = next(self._batches, None)
            if batch is None:
                return True
            self._proposed += batch
            self._waiting = [one for one in batch if one.name not in self.ended]
        return False

    def suggest(self, trial_id: str) -> Any:
        if self.is_over():
            return Searcher.FINISHED
        if not self._waiting or len(self.running) >= self._at_once:
            return None
        one = self.running[trial_id] = self._waiting.pop(0)
        if self.scheduler:
            tell_scheduler(self.scheduler, trial_id, self.history(one))
        return asdict(one)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Handled by `Ends`, which gets more."""

    def history(self, one: Proposal) -> list[dict[str, Any]]:
        """The row of each epoch in a trial's checkpoints."""
        return TrainState.from_dict(store_of(self.place, one.name, self.space.params).newest()[0]).history

    def keep(self, found: Trial, final: bool = True) -> None:
        """Keep the result of a trial; also for the next command, if `final`."""
        self.ended[found.name] = found
        if final:
            text = json.dumps(asdict(found))
            sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "trial": text}
            self._store.write(f"{found.name}.json", json.dumps(sealed).encode())

    def _record(self, name: str) -> Trial | None:
        """The result of a trial; None if the file is damaged."""
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            sealed = json.loads(self._store.read(name) or b"")
            if hashlib.sha256(sealed["trial"].encode()).hexdigest() == sealed["sha256"]:
                return Trial(**json.loads(sealed["trial"]))
        return None

    def spent_s(self, seconds: float | None = None) -> float:
        """How long the commands of the search have taken; saved if `seconds` is given."""
        if seconds is not None:
            self._store.write(HOURS, json.dumps(seconds).encode())
            return seconds
        with suppress(ValueError, TypeError):  # if damaged, the time restarts from 0
            return float(json.loads(self._store.read(HOURS) or "0"))
        return 0.0

    def all(self) -> list[Trial]:
        """The trials by number; for PBT the last parts. Trials stopped by the time limit have their results so far."""
        epochs = self.space.params.search.epochs
        for one in [*self.running.values(), *self._waiting]:
            if history := self.history(one):
                self.keep(made_of(one, history))
        last = {one.number: self.ended[one.name] for one in self._proposed if one.name in self.ended}
        for number, one in last.items():
            if one.status == "done" and len(one.curve) < epochs:
                reason = f"by search.max_hours after {len(one.curve)} epochs"
                last[number] = replace(one, status="stopped", reason=reason)
        return [last[number] for number in sorted(last)]

    def weights(self, found: Trial) -> dict[str, Any]:
        """The weights of a trial's best epoch by the mean of its depths, as in train."""
        run = store_of(self.place, found.name, self.space.params)
        state, passed_over = run.newest()
        if not state:
            raise UserError(
                f"{run.name}: found no intact checkpoint {passed_over}, which train.init=search needs: remove "
                f"{self.place} and rerun the search"
            )
        return TrainState.from_dict(state).best.weights


class Ends(tune.Callback):
    """Keeps what became of each trial, and the time; prints a line for a failure, and each half minute for an epoch."""

    def __init__(self, trials: Trials):
        self._trials, self._done = trials, []
        self._began = self._noted = time.monotonic() - trials.spent_s()
        self._told = time.monotonic()

    def __reduce__(self):
        return tune.Callback, ()

    def on_trial_result(self, iteration, trials, trial, result, **info):
        if "dead" not in result and (is_verbose() or time.monotonic() - self._told >= LOGGED_S):
            self._told = time.monotonic()
            best = next(
                key[13:] for key in result if key.startswith("best_val_iou_L") and result[key] == result[METRIC]
            )
            number = self._trials.running[trial.trial_id].number
            print(f"trial {number}: epoch {result['epoch']}, val IoU {result[METRIC]:.4f} at {best} so far", flush=True)

    def on_trial_error(self, iteration, trials, trial, **info):
        self._done.append((trial, why_failed(Path(trial.error_file or os.devnull).read_text(errors="replace"))))

    def on_trial_complete(self, iteration, trials, trial, **info):
        self._done.append((trial, ""))

    def on_step_end(self, iteration=0, trials=(), **info):
        # Not in the hooks above: Tune takes their errors for the trial's.
        while self._done:
            self._end(*self._done.pop(0))
        if self._trials.space.params.search.max_hours and time.monotonic() - self._noted > EVERY_S:
            self._noted = time.monotonic()
            self._trials.spent_s(self._noted - self._began)

    def _end(self, trial, failed: str) -> None:
        one, last = self._trials.running[trial.trial_id], trial.last_result or {}
        epoch, search = last.get("epoch", 0), self._trials.space.params.search
        found = made_of(one, self._trials.history(one)[:epoch], last.get("time_total_s", 0.0))
        if dead := failed or last.get("dead"):
            print(f"trial {one.number}: failed: {dead}", flush=True)
            found = replace(found, status="failed", reason=dead)
        elif epoch < one.until:
            if search.max_hours and time.monotonic() - self._began >= search.max_hours * 3600:
                return
            found = replace(found, status="stopped", reason=f"early by ASHA after {epoch} epochs")
        self._trials.keep(found, final=not failed)  # the next command retries a trial that was killed from outside
        del self._trials.running[trial.trial_id]


def made_of(one: Proposal, history: list[dict[str, Any]], seconds: float = 0.0) -> Trial:
    """A completed trial, from its rows."""
    known = best_so_far(history) if history else {}
    best = {key[13:]: float(value) for key, value in known.items() if key.startswith("best_val_iou_L")}
    return Trial(one.number, decode(one.config), "done", "", seconds, history, best, one.name)


def run_trials(trials: Trials, spec: TrainSpec) -> list[Trial]:
    """Train the trials of a search on the connected cluster, on the data of `spec`; an interrupted one resumes."""
    params = trials.space.params
    search, hours = params.search, params.search.max_hours
    resources: Any = {"CPU": search.cpus_per_worker} | ({"GPU": 1} if params.train.use_gpu else {})
    if search.num_workers > 1:  # a trial waits for its workers; reserving a core for it could starve them forever
        resources = {"trial_driver": 1}
    trainable: Any = tune.with_parameters(trial, search=spec, params=params, place=trials.place)
    if trials.has_begun:
        print(f"{trials.place}: the search resumes; finished trials are not run again", flush=True)
    left_s = hours * 3600 - trials.spent_s() if hours else None
    if not trials.is_over() and (left_s is None or left_s > 0):
        ends = Ends(trials)
        with scratch() as folder:
            tune.Tuner(
                tune.with_resources(trainable, resources),
                tune_config=tune.TuneConfig(
                    search_alg=trials,
                    scheduler=trials.scheduler,
                    num_samples=-1,
                    time_budget_s=left_s,
                    trial_dirname_creator=lambda one: f"trial-{one.trial_id}",
                    reuse_actors=False,
                ),
                run_config=tune.RunConfig(name="search", storage_path=str(folder), verbose=0, callbacks=[ends]),
            ).fit()
        ends.on_step_end()
        if hours and not trials.is_over():
            trials.spent_s(hours * 3600)
    return trials.all()


def why_failed(text: str) -> str:
    """The reason in one line, from Ray's long message."""
    text = text.strip()
    if "OutOfMemory" in text or "memory pressure" in text:
        return "out of memory: Ray ended the process, because the machine's memory was nearly full"
    if "died" in text or "SIGKILL" in text:
        return "the process was killed from outside, or died without a message"
    return text.splitlines()[-1] if text else "no reason given"
