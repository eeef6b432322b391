"""MLflow's store: where it is, what happens if it is lost, its page. `runs` logs runs, `model_versions` models."""

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

silence()  # mlflow reads these settings on import
# A lost server is noticed after about 15 seconds instead of 4 minutes; a rerun command resumes later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A model file is a graph and its tensors. One that contains pickled code is refused.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

with warnings.catch_warnings():
    # On import, mlflow and sqlalchemy warn about each other (deprecated loaders, type hints).
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
# Errors of a store that may be gone in a moment.
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
    """The store is unreachable: once it is back, rerunning the command completes what was started."""


def tracking_uri(configured: str | None = None) -> str:
    """Where runs and models are stored: `configured`, else $MLFLOW_TRACKING_URI, else mlflow.db of this project."""
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = sqlite_path(uri)
    if path is None or not path.name or path.is_absolute():
        return uri
    return uri.replace(f"///{path}", f"///{_own_folder() / path}", 1)


def _own_folder() -> Path:
    """This folder; if DVC runs an experiment in a temporary copy (--temp, --queue), the original folder."""
    here = Path.cwd()
    for place in here.parents:
        if place.parts[-3:] == (".dvc", "tmp", "exps"):
            copy = next((one for one in (here, *here.parents) if (one / ".dvc").is_dir()), here)
            return place.parents[2] / here.relative_to(copy)
    return here


def project_uri() -> str:
    """`tracking_uri` according to the params of the project in this folder, if there are any."""
    return tracking_uri(load_params().registry.tracking_uri if Path("params.yaml").is_file() else None)


def is_server(uri: str) -> bool:
    """Whether a store is an MLflow server, which has a page of its own."""
    return urlsplit(uri).scheme in ("http", "https")


def with_driver(uri: str) -> str:
    """The URI for sqlalchemy: without a driver's name it would use psycopg, but this project installs psycopg2."""
    return uri.replace("postgresql://", "postgresql+psycopg2://", 1)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn the loss of the store in the block into a `StoreLostError`; other errors pass through."""
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
        # A download of several files reports what happened to each only in its text.
        return error.error_code in PASSING or any(sign in str(error) for sign in LOST)
    if isinstance(error, requests.RequestException | ConnectionError | DBAPIError | TimeoutError):
        return True
    # From a bucket with artifacts; boto3 is imported elsewhere, so only the module of its errors is known here.
    return type(error).__module__.split(".")[0] in ("botocore", "boto3")


def persistent(uri: str, attempt: Callable[[], Result]) -> Result:
    """The result of `attempt`, which is retried twice, after some seconds each, if the store was lost.

    It must be safe to repeat.

    Raises:
        StoreLostError: the store is still unreachable.
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
        "MLFLOW_TRACKING_URI to one that runs, and rerun the command: it resumes. No alias was moved"
    )


def connect(uri: str) -> MlflowClient:
    """A client of the store, which becomes the default of this process.

    Raises:
        UserError: there is no response within 10 seconds, or it is not a store.
    """
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    try:
        if kind in ("http", "https"):
            requests.get(uri, timeout=10)  # any response will do
        elif parts.hostname and kind in DATABASE_PORTS:
            socket.create_connection((parts.hostname, parts.port or DATABASE_PORTS[kind]), timeout=10).close()
    except OSError as error:
        raise _unreachable(uri, error) from None
    # A new database logs a line for each of some fifty migrations, which is of no use to a user.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its long log messages are also raised
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
            raise UserError(
                f"the MLflow store {redacted(uri)} refuses this user: {error.message}; log in with "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ask its owner for access"
            ) from None
        raise _full(uri, error) or _unreachable(uri, error) from None
    return client


@contextmanager
def reading(uri: str) -> Iterator[MlflowClient]:
    """A client of an existing store; a loss of the store in the block is explained.

    Raises:
        UserError: there is no such file, or no response.
    """
    path = sqlite_path(uri)
    if path and not path.is_file():  # connecting would create an empty one
        raise UserError(f"{path}: found no MLflow store; `dvc repro register` creates it, or set MLFLOW_TRACKING_URI")
    with explained(uri):
        yield connect(uri)


def _create_file(uri: str) -> None:
    """Create a store in a file that does not exist yet, completely or not at all.

    MLflow runs some fifty migrations in 5 seconds, and cannot open a store if it was killed between two of them.
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
    """Create something with a unique name, unless another process was faster."""
    try:
        create(name, **fields)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def download(name: str, version: str, path: str, folder: Path) -> Path | None:
    """Download a file or folder of a registered version into `folder`; None if the version does not have it."""
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
    """Replace this process by MLflow's server for the page of a store; returns only if the store is itself a server.

    Raises:
        UserError: the port is in use.
    """
    # Without the parameter the page opens in its mode for language models, which hides the list of models.
    page = f"/#/models{f'/{model_name}' if model_name else ''}?workflowType=machine_learning"
    if is_server(store):
        print(f"MLflow runs on a server: open {redacted(store).rstrip('/')}{page}")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(
                f"port {port} is in use by another program: choose another, such as `unetpp mlflow --port {port + 1}`"
            ) from None
    if (path := sqlite_path(store)) and os.access(path.parent, os.W_OK):
        path.touch(mode=0o600)  # otherwise the server creates it, readable by everybody
    print(f"MLflow will be at http://127.0.0.1:{port}{page} in a few seconds; Ctrl-C stops it", flush=True)
    # In the environment, not as an argument: the URI of a database may contain a password, and `ps` shows arguments.
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": with_driver(store),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    artifact_paths.follow(sqlite_path(store))
    options = {"--host": "127.0.0.1", "--port": str(port), "--workers": "1"}
    command = [sys.executable, "-P", "-m", "mlflow", "server", *(word for option in options.items() for word in option)]
    os.execve(sys.executable, command, environment)
