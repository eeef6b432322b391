"""MLflow, and nothing else of the project imports it: where the store is, runs, models, versions, the page.

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

import numpy as np
import torch
from torch import nn

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
    import mlflow.pyfunc.model
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store
    import requests
    from mlflow import MlflowClient
    from mlflow import pytorch as pytorch_flavor
    from mlflow.entities import (
        Dataset,
        DatasetInput,
        InputTag,
        LoggedModel,
        LoggedModelStatus,
        Metric,
        Param,
        Run,
        RunTag,
    )
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec
    from sqlalchemy.exc import DBAPIError

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Model metrics of a run's step are copied into a model that is logged "at" that step. Nothing is logged at -1.
NO_STEP = -1


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


def find_or_log_model(
    client: MlflowClient,
    run: Run,
    name: str,
    segmenter: nn.Module,
    example: np.ndarray,
    num_classes: int,
    params: dict[str, str],
    tags: dict[str, str],
) -> LoggedModel:
    """The run's model with these tags, exported by torch.export where it is missing.

    Args:
        segmenter: (N, C, H, W) float32 to (N, num_classes, H, W), any N, H and W.
        example: such an input whose sizes all differ from 1, and H from W: an export freezes what it cannot tell apart.
        params, tags: of a new one; fingerprint and depth are what it is found by again.
    """
    experiment = run.info.experiment_id
    where = f"tags.fingerprint = '{tags['fingerprint']}' and tags.depth = '{tags['depth']}'"
    found = [
        model
        for model in client.search_logged_models([experiment], filter_string=where)
        if model.tags.get("verified") != "false"
    ]
    ready = [model for model in found if model.status == LoggedModelStatus.READY]
    if ready:
        return ready[0]
    # One that an interrupted run left behind is filled again.
    model = found[0] if found else client.create_logged_model(experiment, name, run.info.run_id, tags, params)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, example.shape[1], -1, -1))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, num_classes, -1, -1))]),
    )
    pytorch_flavor.log_model(
        segmenter,
        model_id=model.model_id,
        # In a tuple, so that it is not kept as JSON of many MB; the model still serves numpy by mlflow.pyfunc.
        input_example=(example,),
        signature=signature,
        pip_requirements=[
            f"mlflow=={mlflow.__version__}",
            f"torch=={torch.__version__.split('+')[0]}",
            "numpy",
        ],
        serialization_format="pt2",
        step=NO_STEP,
        run_id=run.info.run_id,
    )
    return client.get_logged_model(model.model_id)


def find_or_create_version(
    client: MlflowClient, name: str, model: LoggedModel, run: Run, tags: dict[str, str]
) -> ModelVersion:
    """The registered version of a logged model, made where it is missing; so is the registered model."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model.model_id}"
    for version in client.search_model_versions(f"name = '{name}' and run_id = '{run.info.run_id}'"):
        if version.source == source:
            return version
    return client.create_model_version(name, source, run.info.run_id, tags, model_id=model.model_id)


def mark_verified(client: MlflowClient, name: str, version: str, model_id: str, verified: bool) -> None:
    """Say on a version and its model whether it was read back; one that failed is never taken again."""
    value = str(verified).lower()
    client.set_model_version_tag(name, version, "verified", value)
    client.set_logged_model_tags(model_id, {"verified": value})


def load_version(name: str, version: str) -> nn.Module:
    """A registered version as a module: (N, C, H, W) float32 in [0, 1] to (N, num_classes, H, W) probabilities."""
    return pytorch_flavor.load_model(f"models:/{name}/{version}")


def load_segmenter(uri: str, configured: str | None = None) -> tuple[nn.Module, int, int | None, bool, list[str]]:
    """What is behind `models:/name@alias` or `models:/name/version`.

    Args:
        configured: register.tracking_uri, if there are params.

    Returns:
        the module, as `load_version`; channels of its images; px that images were resized to for training, or None;
        whether its classes are labels that may lie over each other; the names of its foreground classes.

    Raises:
        UserError: no such model, version or alias (the message names those that exist), or no store.
    """
    name, mark, alias = uri.removeprefix("models:/").partition("@")
    if not mark:
        name, _, alias = name.partition("/")
    if not uri.startswith("models:/") or not name or not alias:
        raise UserError(f"found model {uri!r}; expected models:/NAME@ALIAS or models:/NAME/VERSION")
    store = tracking_uri(configured)
    with explained(store):
        client = connect(store)
        try:
            if mark:
                version = client.get_model_version_by_alias(name, alias)
            else:
                version = client.get_model_version(name, alias)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(f"{uri}: no such model in {shown(store)}; {_existing(client, name)}") from None
        needed = ("in_channels", "size_px", "multilabel", "classes")
        lacking = [tag for tag in needed if tag not in version.tags]
        if lacking:
            raise UserError(f"{uri}: its tags lack {', '.join(lacking)}; expected what the register stage writes")
        facts = [json.loads(version.tags[tag]) for tag in needed]
        return load_version(name, str(version.version)), *facts


def _existing(client: MlflowClient, name: str) -> str:
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        if not models:
            return "it holds no registered model: `dvc repro register` makes one"
        return f"it holds {', '.join(f'models:/{one}' for one in models)}"
    aliases = sorted(client.get_registered_model(name).aliases)
    versions = sorted(int(one.version) for one in client.search_model_versions(f"name = '{name}'"))
    listed = ", ".join(map(str, versions)) or "(none)"
    return f"{name} has the aliases {', '.join(aliases) or '(none)'} and the versions {listed}"


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
