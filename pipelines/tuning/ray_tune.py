"""The trials of a search on Ray Tune: running them, and going on after a cut.

Each trial has its checkpoints, and each that has ended a record: JSON with its own sum. By these a command goes on that
was cut. Tune's own files are pickles: they lie in a folder of this command alone, and nobody reads them.
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
from pipelines.core.files import scratch
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

# Trials' working folders are Ray's business, and so is how many start beside each other.
os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_MAX_PENDING_TRIALS_PG": "200"}
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
# Tune's own handler of Ctrl-C ends a search as if it had finished.
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"

HOURS = "hours.json"  # seconds that the commands of a search have taken
EVERY_S = 5  # between two notes of it


class Trials(Searcher):
    """Gives Tune the trials of a search in batches; those that ended in an earlier command are taken as they are."""

    def __init__(self, space: Space, costs: Costs, place: str):
        super().__init__()
        self.space, self.place, self.scheduler = space, place, make_scheduler(space)
        search, self._store = space.params.search, open_store(place, space.params.ingest.s3)
        # PBT compares its whole population, whose trials take turns where they do not fit beside each other.
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
        return Searcher, ()  # Tune writes a pickle

    def is_over(self) -> bool:
        """Whether no trial is left; the next batch is asked for when the last has ended."""
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
        """`Ends` hears more."""

    def history(self, one: Proposal) -> list[dict[str, Any]]:
        """The row of each epoch that a trial has in its checkpoints."""
        return TrainState.from_dict(store_of(self.place, one.name, self.space.params).newest()[0]).history

    def keep(self, found: Trial, final: bool = True) -> None:
        """What became of a trial; for the next command too, where the same would become of it again."""
        self.ended[found.name] = found
        if final:
            text = json.dumps(asdict(found))
            sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "trial": text}
            self._store.write(f"{found.name}.json", json.dumps(sealed).encode())

    def _record(self, name: str) -> Trial | None:
        """What became of a trial; None where the file is not what was written."""
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            sealed = json.loads(self._store.read(name) or b"")
            if hashlib.sha256(sealed["trial"].encode()).hexdigest() == sealed["sha256"]:
                return Trial(**json.loads(sealed["trial"]))
        return None

    def spent_s(self, seconds: float | None = None) -> float:
        """How long the commands of the search have taken; writes it down where it is given."""
        if seconds is not None:
            self._store.write(HOURS, json.dumps(seconds).encode())
            return seconds
        with suppress(ValueError, TypeError):  # damaged, the time is counted anew
            return float(json.loads(self._store.read(HOURS) or "0"))
        return 0.0

    def all(self) -> list[Trial]:
        """By their numbers; of PBT's parts the last. Those that the end of the hours cut have what they reached."""
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
        """The weights of a trial's best epoch by the mean of its depths, as train takes its own."""
        run = store_of(self.place, found.name, self.space.params)
        state, passed_over = run.newest()
        if not state:
            raise UserError(
                f"{run.name}: found no whole checkpoint {passed_over}; train.init is search and needs it: remove "
                f"{self.place} and search again"
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
        # Here and not in the hooks above: Tune takes their errors for the trial's.
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
        self._trials.keep(found, final=not failed)  # what was killed from outside is tried again by the next command
        del self._trials.running[trial.trial_id]


def made_of(one: Proposal, history: list[dict[str, Any]], seconds: float = 0.0) -> Trial:
    """A trial that trained to its end, by its rows."""
    known = best_so_far(history) if history else {}
    best = {key[13:]: float(value) for key, value in known.items() if key.startswith("best_val_iou_L")}
    return Trial(one.number, decode(one.config), "done", "", seconds, history, best, one.name)


def run_trials(trials: Trials, spec: TrainSpec) -> list[Trial]:
    """Train the trials of a search on the connected cluster, on the data of `spec`; one that was cut goes on."""
    params = trials.space.params
    search, hours = params.search, params.search.max_hours
    resources: Any = {"CPU": search.cpus_per_worker} | ({"GPU": 1} if params.train.use_gpu else {})
    if search.num_workers > 1:  # a trial waits for its workers, whom a share of a core for it could starve for ever
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
    """The reason in one line, from what Ray says at length."""
    text = text.strip()
    if "OutOfMemory" in text or "memory pressure" in text:
        return "out of memory: Ray ended the process, since the machine's memory was nearly full"
    if "died" in text or "SIGKILL" in text:
        return "the process was killed from outside, or died without a word"
    return text.splitlines()[-1] if text else "no reason given"
