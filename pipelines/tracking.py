"""MLflow: where the store is, runs, params, metrics, data sets, the page. `registry` has models and versions.

What is logged twice is the same thing once: runs, models and versions are found again by their tags, params
that are there stay, metrics carry the run's own start as their time.
"""

import json
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from unetpp.errors import UserError
from unetpp.offline import silence

silence()  # mlflow reads its switches while it is imported
# A server that went away shows after about 15 seconds, not after 4 minutes; the same command goes on later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
# A model file is a graph and its tensors. One with pickled code inside is refused.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

with warnings.catch_warnings():
    # While they are imported, mlflow and sqlalchemy warn of each other (deprecated loaders, type hints).
    warnings.simplefilter("ignore")
    import mlflow
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store
    import requests
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
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tracking_uri(configured: str | None = None) -> str:
    """Where runs and models are kept: `configured`, else $MLFLOW_TRACKING_URI, else mlflow.db in this folder."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def shown(uri: str) -> str:
    """The URI as it may be printed and stored: without its password."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn the loss of the store, in the block, into a `UserError`; every other error passes."""
    try:
        yield
    except (MlflowException, OSError, DBAPIError) as error:
        causes, cause = [], error
        while cause is not None:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        lost = next(
            (c for c in causes if isinstance(c, requests.RequestException | ConnectionError | DBAPIError)),
            None,
        )
        if lost is None:
            raise
        raise _unreachable(uri, lost) from None


def _unreachable(uri: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(
        f"the MLflow store {shown(uri)} cannot be reached ({reason}). Start it, or set register.tracking_uri or "
        "MLFLOW_TRACKING_URI to one that runs, and give the same command again: it goes on from here. "
        "No alias was moved"
    )


def connect(uri: str) -> MlflowClient:
    """A client of the store, the default of this process from now on.

    Raises:
        UserError: nobody answers there (within 10 seconds), or it is no store.
    """
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    try:
        if kind in ("http", "https"):
            requests.get(uri, timeout=10)  # whatever it answers, it answers
        elif parts.hostname and kind in DATABASE_PORTS:
            socket.create_connection((parts.hostname, parts.port or DATABASE_PORTS[kind]), timeout=10).close()
    except OSError as error:
        raise _unreachable(uri, error) from None
    # One line for each of some fifty migrations of a new database tells a user nothing.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    try:
        mlflow.set_tracking_uri(uri)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError, DBAPIError) as error:
        if isinstance(error, MlflowException) and error.error_code in (
            "UNAUTHENTICATED",
            "PERMISSION_DENIED",
        ):
            raise UserError(f"the MLflow store {shown(uri)} refuses this user: {error.message}") from None
        raise _unreachable(uri, error) from None
    return client


def experiment_id(client: MlflowClient, name: str) -> str:
    """The experiment's id; the experiment is made where it is missing."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # Without this tag the page takes the project for one of language models and hides runs and models.
        return client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment {name!r} is deleted: restore it (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}), or set another register.experiment"
        )
    return found.experiment_id


@contextmanager
def open_run(client: MlflowClient, experiment: str, name: str, fingerprint: str) -> Iterator[Run]:
    """The run with this fingerprint, made where it is missing.

    It is finished when the block was left without an error; a finished one is not touched.
    """
    found = client.search_runs([experiment], f"tags.fingerprint = '{fingerprint}'", max_results=1)
    run = found[0] if found else client.create_run(experiment, run_name=name, tags={"fingerprint": fingerprint})
    run_id = run.info.run_id
    if run.info.status == "FINISHED":
        yield run
        return
    client.update_run(run_id, status="RUNNING")
    try:
        yield run
    except BaseException:
        with suppress(Exception):  # the store may be what failed; the first error is the one to see
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


def log_params(client: MlflowClient, run: Run, params: dict[str, str], tags: dict[str, str]) -> None:
    """Log params that the run has not got yet, and tags."""
    new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for start in range(0, max(1, len(new)), 100):  # a batch holds at most 100
        client.log_batch(run.info.run_id, params=new[start : start + 100])
    client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_datasets(client: MlflowClient, run: Run, datasets: dict[str, dict]) -> None:
    """Log dataset inputs, by context: {"train": {"path": ..., "sha256": ..., "profile": {...}}, ...}."""
    inputs = [
        DatasetInput(
            Dataset(
                name=context,
                digest=digest(dataset["sha256"]),
                source_type="local",
                source=json.dumps({"uri": str(Path(dataset["path"]).absolute())}),
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
    """Log (key, value, step) triples, of a model and on a dataset (name, sha256) if given."""
    name, sha = dataset or (None, None)
    time = run.info.start_time
    metrics = [
        Metric(key, value, time, step, model_id, name, digest(sha) if sha else None, run.info.run_id)
        for key, value, step in values
    ]
    for start in range(0, len(metrics), 1000):  # a batch holds at most 1000
        client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])


def serve_page(port: int, configured: str | None = None, model_name: str | None = None) -> None:
    """Become MLflow's server for the page; returns only where the store is a server itself.

    Raises:
        UserError: the port is taken.
    """
    store = tracking_uri(configured)
    # Without the parameter the page opens as one for language models, which hides the list of models.
    page = f"/#/models{f'/{model_name}' if model_name else ''}?workflowType=machine_learning"
    if urlsplit(store).scheme in ("http", "https"):
        print(f"MLflow runs elsewhere: open {shown(store).rstrip('/')}{page}")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(
                f"port {port} is taken by another program: give another, `unetpp mlflow --port {port + 1}`"
            ) from None
    print(f"MLflow opens at http://127.0.0.1:{port}{page} in some seconds; Ctrl-C ends it", flush=True)
    # By the environment, not as an argument: the URI of a database may hold a password, and `ps` shows arguments.
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    os.execve(sys.executable, command, environment)
