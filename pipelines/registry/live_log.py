"""A training in MLflow while it runs: epoch by epoch, in the run that stage register completes later.

A thread sends the rows, so that training waits for nothing. What was not sent when training ends is kept in a file
beside the curves, and stage register sends it. Whoever sends asks the store first what it has: nothing is there twice.
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
PATIENCE_S = 10.0  # how long the end of a training run waits for what was not sent
HASTE_S = 3.0  # and that of one which was asked to stop
UNLOGGED = "unlogged.jsonl"

Row = tuple[dict[str, Any], int]  # an epoch's numbers, and milliseconds since 1970
Send = Callable[[Sequence[Row], str | None], None]


class Sender:
    """Sends rows in order, in a thread, again and again until it works.

    Args:
        send: of some rows, and at last how the training ended; whatever it raises is said once, and it is tried again.
    """

    def __init__(self, send: Send, retry_s: float | None = None):
        self._send, self._retry_s = send, RETRY_S if retry_s is None else retry_s
        self._rows: list[Row] = []
        self._status: str | None = None
        self._changed, self._ends, self._over = threading.Condition(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, row: dict[str, Any]) -> None:
        """Send this row as soon as it goes; returns at once."""
        with self._changed:
            self._rows.append((row, int(1000 * time.time())))
            self._changed.notify()

    def close(self, status: str, patience_s: float) -> list[Row]:
        """Send what is left, and how the training ended; returns the rows that were not sent in this time."""
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
            except Exception as error:  # whatever it is: training goes on
                if not failing:
                    first = redacted((str(error).splitlines() or [""])[0])[:300]
                    print(f"not in MLflow for now: {type(error).__name__}: {first}", file=sys.stderr, flush=True)
                failing = True
                if status is None:
                    self._ends.wait(self._retry_s)
                else:
                    self._over.wait(min(1.0, self._retry_s))
                continue
            if failing:
                print("in MLflow again", file=sys.stderr, flush=True)
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
    """Log a training run in MLflow, epoch by epoch, where `register.live` wants it and a store can be there.

    Args:
        training: the run's name (`pipelines.training.spec.run_name`).
        history: rows of the epochs that were done before.
        spool: file for the rows that MLflow did not take.

    Yields:
        what is to be called with each new row.
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
    """Whether a training run of this process is to be logged, and the store is one that outlives it.

    On a cluster the default, a file in the working directory, would be lost with the job.
    """
    configured = params.registry.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    return params.registry.live and bool(urlsplit(configured).hostname or not os.environ.get("RAY_ADDRESS"))


class _RunLog:
    """A `Send` into MLflow; nothing is imported or asked before its first call."""

    def __init__(self, params: Params, training: str):
        self._params, self._training = params, training
        self._run: Any = None
        self._asked: set[str] = set()
        self._known: set[tuple[str, int]] = set()

    def __call__(self, rows: Sequence[Row], status: str | None) -> None:
        # A server that is away is given up after some seconds: the next try comes soon.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it is printed at the start
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

        logging.getLogger("urllib3").setLevel("ERROR")  # each try again would be a line on the terminal
        register = self._params.registry
        self._client = mlflow_store.connect(mlflow_store.tracking_uri(register.tracking_uri))
        where = runs.experiment_id(self._client, register.experiment)
        name = f"{register.model_name} {self._training}"
        self._run = runs.open_training(self._client, where, name, self._training, self._describe(), register.model_name)
        if self._run is None:
            print(f"{self._training} is in MLflow already, with all of its epochs", flush=True)
            self._run = False
        elif mlflow_store.is_server(self._client.tracking_uri):
            place = f"experiments/{where}/runs/{self._run.info.run_id}/model-metrics"
            print(f"in MLflow: {redacted(self._client.tracking_uri)}/#/{place}", flush=True)

    def _describe(self) -> str:
        used = self._params.model_dump(mode="json", include={"model", "train", "augment"})
        return (
            f"Training `{self._training}`: its epochs appear while it runs. Stage register completes this run.\n\n"
            f"```yaml\n{yaml.safe_dump(used, sort_keys=False)}```\n"
        )


def values_of(row: dict[str, Any]) -> dict[str, float]:
    """What MLflow shows of an epoch, by the names of its curves."""
    return curves_of(row) | {"images_per_s": float(row["images_per_s"])}


def series(rows: Sequence[Row], known: set[tuple[str, int]]) -> list[tuple[str, float, int, int]]:
    """The values of some epochs, but for the (key, epoch) that are known: (key, value, epoch, milliseconds)."""
    found = {}
    for row, time_ms in rows:  # an epoch that was done twice counts once
        for key, value in values_of(row).items():
            found.setdefault((key, row["epoch"]), (key, value, row["epoch"], time_ms))
    return [values for place, values in found.items() if place not in known]


def _keep(spool: Path, training: str, rows: Sequence[Row]) -> None:
    lines = [json.dumps({"training": training, "time_ms": time_ms, "row": row}) for row, time_ms in rows]
    with replacing(spool) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{spool}: {len(rows)} epoch(s) that MLflow did not take; stage register brings them", flush=True)


def read_unlogged(spool: Path, training: str | None) -> list[Row]:
    """The rows of this training that were kept for want of a store."""
    if not spool.is_file():
        return []
    fix = "remove it: these epochs are then logged without their val loss and speed"
    keys = ("training", "row", "time_ms")
    lines = [parse_json(line, spool, fix, keys) for line in read_text(spool, fix).splitlines()]
    return [(line["row"], line["time_ms"]) for line in lines if line["training"] == training]
