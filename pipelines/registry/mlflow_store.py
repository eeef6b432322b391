"""MLflow: where the store is, what its loss means, the page. `runs` has runs, `registry` models and versions."""

import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pipelines.core.full_disk import full_disk
from pipelines.core.params import load_params
from pipelines.core.redaction import redacted
from pipelines.registry.lock import TurnLostError, opening, sqlite_path
from pipelines.storage import artifact_paths
from unetpp.errors import UserError
from unetpp.offline import silence

silence()  # mlflow reads its switches while it is imported
# A server that went away shows after about 15 seconds, not after 4 minutes; the same command goes on later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A model file is a graph and its tensors. One with pickled code inside is refused.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

with warnings.catch_warnings():
    # While they are imported, mlflow and sqlalchemy warn of each other (deprecated loaders, type hints).
    warnings.simplefilter("ignore")
    import mlflow
    import mlflow.artifacts
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store
    import requests
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError

Result = TypeVar("Result")
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# What a store answers that may answer otherwise in a moment.
LOST = (
    "Max retries exceeded",
    "Connection aborted",
    "Connection broken",
    "IncompleteRead",
    "Connection refused",
    "Read timed out",
)
PASSING = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED"}
RETRY_AFTER_S = (2, 10)


class StoreLostError(UserError):
    """The store is away, or went away: the same command completes what was begun when it is back."""


def tracking_uri(configured: str | None = None) -> str:
    """Where runs and models are kept: `configured`, else $MLFLOW_TRACKING_URI, else mlflow.db of this project."""
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = sqlite_path(uri)
    if path is None or not path.name or path.is_absolute():
        return uri
    return uri.replace(f"///{path}", f"///{_own_folder() / path}", 1)


def _own_folder() -> Path:
    """This folder; where DVC runs an experiment in a copy (--temp, --queue) that it deletes, the project's own."""
    here = Path.cwd()
    for place in here.parents:
        if place.parts[-3:] == (".dvc", "tmp", "exps"):
            copy = next((one for one in (here, *here.parents) if (one / ".dvc").is_dir()), here)
            return place.parents[2] / here.relative_to(copy)
    return here


def project_uri() -> str:
    """`tracking_uri` by the params of the project in this folder, where there are any."""
    return tracking_uri(load_params().registry.tracking_uri if Path("params.yaml").is_file() else None)


def is_server(uri: str) -> bool:
    """Whether a store is an MLflow server, with a page of its own."""
    return urlsplit(uri).scheme in ("http", "https")


def with_driver(uri: str) -> str:
    """The URI as sqlalchemy wants it: without a driver's name it takes psycopg, and this project brings psycopg2."""
    return uri.replace("postgresql://", "postgresql+psycopg2://", 1)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn the loss of the store, in the block, into a `StoreLostError`; every other error passes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if told := _full(uri, error):
            raise told from None
        causes, cause = [], error
        while cause is not None:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        lost = next((cause for cause in causes if _is_loss(cause)), None)
        if lost is None:
            raise
        raise _unreachable(uri, lost) from None


def _full(uri: str, error: Exception) -> UserError | None:
    return full_disk(error, sqlite_path(uri) or redacted(uri))


def _is_loss(error: BaseException) -> bool:
    if isinstance(error, MlflowException):
        # A download of several files tells what happened to each in its text alone.
        return error.error_code in PASSING or any(sign in str(error) for sign in LOST)
    if isinstance(error, requests.RequestException | ConnectionError | DBAPIError | TimeoutError):
        return True
    # Of a bucket that holds the artifacts; storage.py is the home of boto3, and all of its errors come from there.
    return type(error).__module__.split(".")[0] in ("botocore", "boto3")


def persistent(uri: str, attempt: Callable[[], Result]) -> Result:
    """The result of `attempt`, which is made again after some seconds where the store was lost, and then once more.

    What it does must be no harm when done twice.

    Raises:
        StoreLostError: the store is away for longer.
    """
    for wait_s in (*RETRY_AFTER_S, None):
        try:
            with explained(uri):
                return attempt()
        except (StoreLostError, TurnLostError) as error:
            if wait_s is None:
                raise
            print(f"{str(error).splitlines()[0]}\ntrying again in {wait_s} seconds", flush=True)
            time.sleep(wait_s)
    raise AssertionError


def _unreachable(uri: str, error: BaseException) -> StoreLostError:
    reason = redacted((str(error).splitlines() or [type(error).__name__])[0])[:200]
    return StoreLostError(
        f"the MLflow store {redacted(uri)} cannot be reached ({reason}). Start it, or set register.tracking_uri or "
        "MLFLOW_TRACKING_URI to one that runs, and rerun the command: it continues from here. "
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
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it logs at length is raised, too
    try:
        mlflow.set_tracking_uri(with_driver(uri))
        with opening(uri):
            _create_file(uri)
            artifact_paths.follow(sqlite_path(uri))
            client = MlflowClient(with_driver(uri))
            client.search_experiments(max_results=1)
    except (MlflowException, OSError, DBAPIError) as error:
        if isinstance(error, MlflowException) and error.error_code in (
            "UNAUTHENTICATED",
            "PERMISSION_DENIED",
        ):
            raise UserError(f"the MLflow store {redacted(uri)} refuses this user: {error.message}") from None
        raise _full(uri, error) or _unreachable(uri, error) from None
    return client


@contextmanager
def reading(uri: str) -> Iterator[MlflowClient]:
    """A client of a store that exists; its loss in the block is explained.

    Raises:
        UserError: there is no such file, or nobody answers there.
    """
    path = sqlite_path(uri)
    if path and not path.is_file():  # connecting would make an empty one
        raise UserError(f"there is no MLflow store {path}: `dvc repro register` makes it; or set MLFLOW_TRACKING_URI")
    with explained(uri):
        yield connect(uri)


def _create_file(uri: str) -> None:
    """Make a store that is a file and is not there yet, whole or not at all.

    MLflow makes it by some fifty migrations in 5 seconds, and cannot open one that was killed between two of them.
    """
    path = sqlite_path(uri)
    if not path or urlsplit(uri).query or path.exists() or not os.access(path.parent, os.W_OK):
        return
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
    artifact_paths.follow(path, partial)
    partial.chmod(0o600)
    partial.rename(path)


def create_once(create: Callable, name: str, **fields) -> None:
    """Create what has a unique name, unless another process was faster."""
    try:
        create(name, **fields)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def download(name: str, version: str, path: str, folder: Path) -> Path | None:
    """Fetch a file or folder of a registered version into `folder`; None where it has none of this name."""
    try:
        fetched = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}/{path}", dst_path=str(folder)))
        return fetched if fetched.exists() else None
    except FileNotFoundError:
        return None
    except MlflowException as error:
        if not any(word in str(error) for word in ("No such", "not found", "404")):
            raise
        return None


def serve_page(port: int, store: str, model_name: str | None = None) -> None:
    """Become MLflow's server for the page of a store; returns only where the store is a server itself.

    Raises:
        UserError: the port is taken.
    """
    # Without the parameter the page opens as one for language models, which hides the list of models.
    page = f"/#/models{f'/{model_name}' if model_name else ''}?workflowType=machine_learning"
    if is_server(store):
        print(f"MLflow runs elsewhere: open {redacted(store).rstrip('/')}{page}")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(
                f"port {port} is taken by another program: give another, `unetpp mlflow --port {port + 1}`"
            ) from None
    if (path := sqlite_path(store)) and os.access(path.parent, os.W_OK):
        path.touch(mode=0o600)  # else the server makes it, for everybody to read
    print(f"MLflow opens at http://127.0.0.1:{port}{page} in some seconds; Ctrl-C ends it", flush=True)
    # By the environment, not as an argument: the URI of a database may hold a password, and `ps` shows arguments.
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": with_driver(store),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    artifact_paths.follow(sqlite_path(store))
    options = {"--host": "127.0.0.1", "--port": str(port), "--workers": "1"}
    command = [sys.executable, "-P", "-m", "mlflow", "server", *(word for option in options.items() for word in option)]
    os.execve(sys.executable, command, environment)
