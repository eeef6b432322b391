"""Runs in MLflow: params, metrics, datasets, and trials as nested runs.

Logging twice has the effect of logging once: a run is found by its fingerprint, existing params stay, and metrics have
the run's start as their time.
"""

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from pipelines.registry import mlflow_store  # it sets environment variables that mlflow reads on import
from pipelines.registry.lock import sqlite_path
from pipelines.storage import artifact_paths
from unetpp.errors import UserError

with warnings.catch_warnings():
    # On import, mlflow and sqlalchemy warn about each other (deprecated loaders, type hints).
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.entities import (
        Dataset,
        DatasetInput,
        InputTag,
        Metric,
        Param,
        Run,
        RunTag,
    )


def experiment_id(client: MlflowClient, name: str) -> str:
    """The experiment's id; the experiment is created if it is missing."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # Without this tag the page opens in its mode for language models, and hides runs and models.
        mlflow_store.create_once(
            client.create_experiment, name, tags={"mlflow.experimentKind": "custom_model_development"}
        )
        artifact_paths.follow(sqlite_path(client.tracking_uri))  # a command in another folder may have created it
        found = client.get_experiment_by_name(name)
        assert found is not None
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment {name!r} was deleted: restore it (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}), or set another register.experiment"
        )
    return found.experiment_id


def find_or_create_run(
    client: MlflowClient, experiment: str, name: str, fingerprint: str, training: str | None = None, **tags: str
) -> Run:
    """The run with this fingerprint, or if it is missing, the one that its training run opened, or a new one."""
    where = f"tags.fingerprint = '{fingerprint}'"
    if not client.search_runs([experiment], where, max_results=1):
        opened = _only(client, _of_training(client, experiment, training)[0]) if training else None
        if opened:
            client.update_run(opened.info.run_id, status="RUNNING", name=name)
            client.set_tag(opened.info.run_id, "fingerprint", fingerprint)  # last: from now on it is found by this tag
        else:
            client.create_run(experiment, run_name=name, tags={"fingerprint": fingerprint} | tags)
    found = _only(client, client.search_runs([experiment], where))
    assert found is not None
    return found


def _only(client: MlflowClient, found: Iterable[Run]) -> Run | None:
    """Keep the oldest of several runs and delete the others: a response may be lost after the run was created."""
    ordered = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
    for run in ordered[1:]:
        client.delete_run(run.info.run_id)
    return ordered[0] if ordered else None


def _of_training(client: MlflowClient, experiment: str, training: str) -> tuple[list[Run], list[Run]]:
    """The MLflow runs that a training run opened: those not completed by stage register yet, and the completed ones."""
    opened, completed = [], []
    for run in client.search_runs([experiment], f"tags.training = '{training}'"):
        (completed if "fingerprint" in run.data.tags else opened).append(run)
    return opened, completed


def open_training(
    client: MlflowClient, experiment: str, name: str, training: str, description: str, model_name: str
) -> Run | None:
    """The MLflow run that shows a training run live, created if it is missing; stage register completes it.

    None if it is already complete. The same training run has the same curves, so nothing is missing from it.
    """
    opened, completed = _of_training(client, experiment, training)
    if not opened and completed:
        return None
    if not opened:
        tags = {"training": training, "model_name": model_name, "mlflow.source.name": "pipelines/train.py"}
        client.create_run(experiment, run_name=name, tags=tags | {"mlflow.note.content": description})
        opened, _ = _of_training(client, experiment, training)
    run = _only(client, opened)
    assert run is not None
    client.update_run(run.info.run_id, status="RUNNING")
    return run


def known_steps(client: MlflowClient, run: Run, *keys: str) -> set[tuple[str, int]]:
    """The steps of these metrics that the run already has, as (key, step)."""
    return {(key, one.step) for key in keys for one in client.get_metric_history(run.info.run_id, key)}


@contextmanager
def open_run(
    client: MlflowClient, experiment: str, name: str, fingerprint: str, training: str | None = None
) -> Iterator[Run]:
    """The run with this fingerprint, created if it is missing, or the one that its training run opened.

    It is marked finished if the block ends without an error; an already finished run is not changed.
    """
    run = find_or_create_run(client, experiment, name, fingerprint, training)
    run_id = run.info.run_id
    if run.info.status == "FINISHED":
        yield run
        return
    client.update_run(run_id, status="RUNNING")
    try:
        yield run
    except BaseException:
        with suppress(Exception):  # the store itself may have failed; the first error is the one to report
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


def log_params(client: MlflowClient, run: Run, params: dict[str, str], tags: dict[str, str]) -> None:
    """Log params that the run does not have yet, and tags."""
    new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for start in range(0, max(1, len(new)), 100):  # a batch holds at most 100
        client.log_batch(run.info.run_id, params=new[start : start + 100])
    client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_datasets(client: MlflowClient, run: Run, datasets: dict[str, dict]) -> None:
    """Log dataset inputs, by context: {"train": {"sha256", "source_type", "source": {...}, "profile": {...}}, ...}."""
    inputs = [
        DatasetInput(
            Dataset(
                name=context,
                digest=digest(dataset["sha256"]),
                source_type=dataset["source_type"],
                source=json.dumps(dataset["source"]),
                profile=json.dumps(dataset["profile"] | {"sha256": dataset["sha256"]}),
            ),
            [InputTag("mlflow.data.context", context)],
        )
        for context, dataset in datasets.items()
    ]
    client.log_inputs(run.info.run_id, inputs)


def digest(sha256: str) -> str:
    """A hash, short enough for MLflow's 36 characters."""
    return sha256[:32]


def log_metrics(
    client: MlflowClient,
    run: Run,
    values: Iterable[tuple[str, float, int]],
    model_id: str | None = None,
    dataset: tuple[str, str] | None = None,
) -> None:
    """Log (key, value, step) triples; if given, for a model and on a dataset (name, sha256)."""
    name, sha = dataset or (None, None)
    started = run.info.start_time
    metrics = [
        Metric(key, value, started, step, model_id, name, digest(sha) if sha else None, run.info.run_id)
        for key, value, step in values
    ]
    _log_batches(client, run, metrics)


def log_series(client: MlflowClient, run: Run, values: Iterable[tuple[str, float, int, int]]) -> None:
    """Log measurements over time: (key, value, step, milliseconds since 1970)."""
    _log_batches(client, run, [Metric(key, value, time_ms, step) for key, value, step, time_ms in values])


def _log_batches(client: MlflowClient, run: Run, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), 1000):  # a batch holds at most 1000
        client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])


def log_trial(
    client: MlflowClient, parent: Run, fingerprint: str, name: str, params: dict, metrics: list, tags: dict
) -> None:
    """Log a trial of the search as a nested run; a finished one is left unchanged."""
    inside = {"mlflow.parentRunId": parent.info.run_id}
    trial = find_or_create_run(client, parent.info.experiment_id, f"trial {name}", fingerprint, **inside)
    if trial.info.status != "FINISHED":
        log_params(client, trial, params, tags)
        log_metrics(client, trial, metrics)
        client.set_terminated(trial.info.run_id)
