"""A training run in MLflow while it runs: epoch by epoch, in the MLflow run that stage register completes later.

A thread sends the rows, so that training does not wait. Rows not sent when training ends are kept in a file next to the
curves, and stage register sends them. Before sending, the store is asked what it has: nothing is logged twice.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipelines.core.files import replacing
from pipelines.core.params import Params
from pipelines.core.redaction import redacted
from pipelines.training.epoch_metrics import curves_of
from unetpp.files import parse_json, read_text

RETRY_S = 15.0
PATIENCE_S = 10.0  # how long the end of a training run waits for rows that are not sent yet
HASTE_S = 3.0  # the same for a training run that was asked to stop
UNLOGGED = "unlogged.jsonl"

Row = tuple[dict[str, Any], int]  # an epoch's numbers, and milliseconds since 1970
Send = Callable[[Sequence[Row], str | None], None]


class Sender:
    """Sends rows in order, in a thread, and retries until it works.

    Args:
        send: sends rows, and at the end how training ended; an error is printed once, and sending is retried.
    """

    def __init__(self, send: Send, retry_s: float | None = None):
        self._send, self._retry_s = send, RETRY_S if retry_s is None else retry_s
        self._rows: list[Row] = []
        self._status: str | None = None
        self._changed, self._ends, self._over = threading.Condition(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, row: dict[str, Any]) -> None:
        """Send this row as soon as possible; returns at once."""
        with self._changed:
            self._rows.append((row, int(1000 * time.time())))
            self._changed.notify()

    def close(self, status: str, patience_s: float) -> list[Row]:
        """Send what is left, and how training ended; returns the rows that were not sent in this time."""
        with self._changed:
            self._status = status
            self._ends.set()
            self._changed.notify()
        self._over.wait(patience_s)
        self._over.set()
        with self._changed:
            return list(self._rows)

    def _run(self) -> None:
        failing = False
        while not self._over.is_set():
            with self._changed:
                rows, status = list(self._rows), self._status
            try:
                self._send(rows, status)
            except Exception as error:  # whatever it is, training continues
                if not failing:
                    first = redacted((str(error).splitlines() or [""])[0])[:300]
                    print(
                        f"cannot log to MLflow, retrying: {type(error).__name__}: {first}", file=sys.stderr, flush=True
                    )
                failing = True
                if status is None:
                    self._ends.wait(self._retry_s)
                else:
                    self._over.wait(min(1.0, self._retry_s))
                continue
            if failing:
                print("logging to MLflow again", file=sys.stderr, flush=True)
            failing = False
            with self._changed:
                del self._rows[: len(rows)]
                if status is not None:
                    self._over.set()
                while not self._rows and self._status == status and not self._over.is_set():
                    self._changed.wait()


@contextmanager
def logged_live(
    params: Params, training: str, history: Sequence[dict], spool: Path
) -> Iterator[Callable[[dict], None]]:
    """Log a training run in MLflow, epoch by epoch, if `register.live` is set and the store outlives this process.

    Args:
        training: the run's name (`pipelines.training.spec.run_name`).
        history: rows of the epochs completed before.
        spool: file for rows that could not be sent to MLflow.

    Yields:
        a function to call with each new row.
    """
    spool.unlink(missing_ok=True)
    if not _can_log(params):
        yield lambda _row: None
        return
    sender = Sender(_RunLog(params, training))
    for row in history:
        sender.add(row)
    status = "FAILED"
    try:
        yield sender.add
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        patience_s = HASTE_S if status == "KILLED" else PATIENCE_S
        if left := sender.close(status, patience_s):
            _keep(spool, training, left)


def _can_log(params: Params) -> bool:
    """Whether to log a training run of this process, in a store that outlives it.

    On a cluster the default store, a file in the working directory, would be lost with the job.
    """
    configured = params.registry.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    return params.registry.live and bool(urlsplit(configured).hostname or not os.environ.get("RAY_ADDRESS"))


class _RunLog:
    """A `Send` to MLflow; before its first call, it imports nothing and connects to nothing."""

    def __init__(self, params: Params, training: str):
        self._params, self._training = params, training
        self._run: Any = None
        self._asked: set[str] = set()
        self._known: set[tuple[str, int]] = set()

    def __call__(self, rows: Sequence[Row], status: str | None) -> None:
        # Give up on an unreachable server after some seconds: the next try comes soon.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # `_open` prints it
        from pipelines.registry import runs

        if self._run is None:
            self._open()
        if self._run is False:  # the store has all of it
            return
        new = {key for row, _ in rows for key in values_of(row)} - self._asked
        self._known |= runs.known_steps(self._client, self._run, *sorted(new))
        self._asked |= new
        values = series(rows, self._known)
        if values:
            runs.log_series(self._client, self._run, values)
        self._known |= {(key, step) for key, _, step, _ in values}
        if status is not None:
            self._client.set_terminated(self._run.info.run_id, status)

    def _open(self) -> None:
        from pipelines.registry import mlflow_store, runs

        logging.getLogger("urllib3").setLevel("ERROR")  # otherwise each retry prints a line
        register = self._params.registry
        self._client = mlflow_store.connect(mlflow_store.tracking_uri(register.tracking_uri))
        where = runs.experiment_id(self._client, register.experiment)
        name = f"{register.model_name} {self._training}"
        self._run = runs.open_training(self._client, where, name, self._training, self._describe(), register.model_name)
        if self._run is None:
            print(f"{self._training} is already in MLflow, with all its epochs", flush=True)
            self._run = False
        elif mlflow_store.is_server(self._client.tracking_uri):
            place = f"experiments/{where}/runs/{self._run.info.run_id}/model-metrics"
            print(f"live curves in MLflow: {redacted(self._client.tracking_uri)}/#/{place}", flush=True)

    def _describe(self) -> str:
        used = self._params.model_dump(mode="json", include={"model", "train", "augment"})
        return (
            f"Training run `{self._training}`: epochs appear here while it runs. Stage register completes this run.\n\n"
            f"```yaml\n{yaml.safe_dump(used, sort_keys=False)}```\n"
        )


def values_of(row: dict[str, Any]) -> dict[str, float]:
    """The values of an epoch by the names of their curves in MLflow."""
    return curves_of(row) | {"images_per_s": float(row["images_per_s"])}


def series(rows: Sequence[Row], known: set[tuple[str, int]]) -> list[tuple[str, float, int, int]]:
    """The values of some epochs, except for `known` (key, epoch) pairs: (key, value, epoch, milliseconds)."""
    found = {}
    for row, time_ms in rows:  # an epoch that was computed twice is logged once
        for key, value in values_of(row).items():
            found.setdefault((key, row["epoch"]), (key, value, row["epoch"], time_ms))
    return [values for place, values in found.items() if place not in known]


def _keep(spool: Path, training: str, rows: Sequence[Row]) -> None:
    lines = [json.dumps({"training": training, "time_ms": time_ms, "row": row}) for row, time_ms in rows]
    with replacing(spool) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(
        f"{spool}: kept {len(rows)} epoch(s) that could not be logged to MLflow; stage register logs them", flush=True
    )


def read_unlogged(spool: Path, training: str | None) -> list[Row]:
    """The rows of this training run that could not be sent to a store."""
    if not spool.is_file():
        return []
    fix = "remove it: these epochs are then logged without val loss and speed"
    keys = ("training", "row", "time_ms")
    lines = [parse_json(line, spool, fix, keys) for line in read_text(spool, fix).splitlines()]
    return [(line["row"], line["time_ms"]) for line in lines if line["training"] == training]
