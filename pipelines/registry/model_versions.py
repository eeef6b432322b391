"""Models and versions in MLflow's registry: logging, finding again, reading back and loading.

A model or version that is there already is found by its tags and taken; nothing is made twice. What is logged is
weights as safetensors, numbers as JSON and SHA256SUMS over all of it: no pickle, no code.
"""

import base64
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from pipelines.core.checksums import SUMS, check_seal, seal, sealed_files
from pipelines.core.redaction import redacted
from pipelines.core.temporary_folders import scratch
from pipelines.registry import evidence
from unetpp.errors import UserError, said
from unetpp.files import sha256
from unetpp.models.model_file import MODEL, Trained, load_model

with warnings.catch_warnings():
    # While they are imported, mlflow and sqlalchemy warn of each other (deprecated loaders, type hints).
    warnings.simplefilter("ignore")
    import mlflow
    import mlflow.pyfunc
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import PyFuncModel

    from pipelines.served.params import params_schema

logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it tells of each example that it checks
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each of many small files
# Model metrics of a run's step are copied into a model that is logged "at" that step. Nothing is logged at -1.
NO_STEP = -1
TAG = "sha256sums"  # of a logged model: the sha256 of its SHA256SUMS
# What a machine that serves needs, besides this package: it is installed from its own source, and never from a name
# in an index that a stranger may hold.
RUNTIMES = ("onnxruntime", "openvino")  # and where exports are carried, those of these that are installed here
PARTING = ("scikit-image", "scipy")  # and where objects are parted
SERVED_WITH = ("mlflow", "torch", "numpy", "opencv-python-headless", "pillow", "safetensors", "tifffile", "imagecodecs")


def find_or_log_model(
    client: MlflowClient,
    run: Run,
    name: str,
    trained: Trained,
    depth: int,
    params: dict[str, str],
    tags: dict[str, str],
    exports: Path | None = None,
    measured: Path | None = None,
) -> LoggedModel:
    """The run's model with these tags, logged where it is missing: a pyfunc that `pipelines.served` answers for.

    Args:
        depth: what the network is pruned to; the heads of the shallower depths stay.
        params, tags: of a new one; fingerprint and depth are what it is found by again.
        exports, measured: see `evidence.carry`.
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
    with scratch() as parent:
        folder = parent / "model"
        digest = write_model(folder, trained, depth, model, exports, measured)
        outputs = client.get_run(run.info.run_id).outputs
        if model.model_id not in {one.model_id for one in (outputs.model_outputs if outputs else [])}:
            client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=NO_STEP)])
        # In the database, and the files in the artifact store: who can write to one cannot fool a reader of both.
        client.set_logged_model_tags(model.model_id, {TAG: digest})
        upload_model(client, model.model_id, folder)
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def upload_model(client: MlflowClient, model_id: str, folder: Path) -> None:
    """Copy a model's folder into the artifact store."""
    client.log_model_artifacts(model_id, str(folder))


def write_model(
    folder: Path,
    trained: Trained,
    depth: int,
    model: LoggedModel | None = None,
    exports: Path | None = None,
    measured: Path | None = None,
) -> str:
    """Write what is registered of a depth as a folder that MLflow serves; returns the sha256 of its SHA256SUMS.

    Args:
        exports, measured: see `evidence.carry`.
    """
    described = Model(artifact_path=None)
    if model is not None:
        described = Model(
            artifact_path=model.artifact_location,
            model_uuid=model.model_id,
            model_id=model.model_id,
            run_id=model.source_run_id,
        )
    side = 32
    ramp = np.linspace(0, 255, side * side, dtype=np.uint8).reshape(side, side)
    example = base64.b64encode(cv2.imencode(".png", ramp)[1].tobytes()).decode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an input that has no schema: it is any of many forms (docs/serving.md)
        mlflow.pyfunc.save_model(
            folder,
            # Not `python_model`: that would be code, or a pickle, in the model's folder.
            loader_module="pipelines.served",
            mlflow_model=described,
            signature=ModelSignature(params=params_schema(depth)),
            input_example=([example], {"mode": "single"}),
            pip_requirements=_requirements(
                SERVED_WITH
                + RUNTIMES * bool(evidence.find_carried(exports, depth))
                + PARTING * (trained.about.separation() is not None)
            ),
        )
    trained.folded(depth, keep_heads=True).save(folder / MODEL)
    evidence.carry(folder, exports, measured, depth)
    return seal(folder)


def _requirements(packages: tuple[str, ...]) -> list[str]:
    """Those that are installed here, at their versions."""
    there = [package for package in packages if package not in RUNTIMES or find_spec(package)]
    return [f"{package}=={installed(package).split('+')[0]}" for package in there]


def find_or_create_version(
    client: MlflowClient, name: str, model: LoggedModel, run: Run, tags: dict[str, str]
) -> ModelVersion:
    """The version of a logged model in a registered model that exists, made where it is missing.

    Of several it is the first, and the others go: an answer may be lost on its way after the version was made, and
    a process that lost its turn may have made one. Numbers are given out in order, so whoever has made one finds
    every lower one.
    """
    source = f"models:/{model.model_id}"
    where = f"name = '{name}' and run_id = '{run.info.run_id}'"
    if not any(version.source == source for version in client.search_model_versions(where)):
        client.create_model_version(name, source, run.info.run_id, tags, model_id=model.model_id)
    found = [version for version in client.search_model_versions(where) if version.source == source]
    first, *others = sorted(found, key=lambda version: int(version.version))
    for version in others:
        client.delete_model_version(name, version.version)
    return first


def mark_verified(client: MlflowClient, name: str, version: str, model_id: str, verified: bool) -> None:
    """Say on a version and its model whether it was read back; one that failed is never taken again."""
    value = str(verified).lower()
    client.set_model_version_tag(name, version, "verified", value)
    client.set_logged_model_tags(model_id, {"verified": value})


def fetch_files(name: str, version: str, folder: Path) -> None:
    """Fill a folder with a registered version's own files, exports and engines.json among them.

    Only what SHA256SUMS lists is fetched, and its hashes are compared; no code of the model's folder runs.

    Raises:
        UserError: a file is missing or has other bytes than when it was logged, or it was not logged by `register`.
    """
    with of_version(name, version, folder):
        location = _location(name, version)
        for file in download_sums(name, version, folder):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            _download(f"{location}/{file}", (folder / file).parent)
        check_seal(folder)


@contextmanager
def of_version(name: str, version: str, folder: Path) -> Iterator[None]:
    """Errors of the block name the version in place of the folder that its files lie in."""
    try:
        yield
    except UserError as error:
        raise UserError(f"models:/{name}/{version}: {str(error).replace(f'{folder}/', '')}") from None


def fetch_version(name: str, version: str) -> Trained:
    """A registered version, with the heads of all depths that it holds.

    Raises:
        UserError: as `fetch_files`.
    """
    with scratch() as folder:
        fetch_files(name, version, folder)
        with of_version(name, version, folder):
            return load_model(folder)


def fetch_trained(client: MlflowClient, version: ModelVersion) -> Trained:
    """What a version was made of: the whole network as it was trained, from the version's run.

    Raises:
        UserError: the run keeps no model, or a damaged one.
    """
    with scratch() as folder:
        try:
            return load_model(client.download_artifacts(str(version.run_id), "model", str(folder)))
        except (MlflowException, OSError) as error:
            raise UserError(
                f"models:/{version.name}/{version.version}: its run keeps no trained model ({said(error)}); run `dvc "
                "repro --force --single-item register` to register it again"
            ) from None
        except UserError as error:
            raise UserError(
                f"models:/{version.name}/{version.version}, its run: {str(error).replace(f'{folder}/', '')}"
            ) from None


def load_served(name: str, version: str) -> PyFuncModel:
    """A version as `mlflow models serve` has it."""
    return mlflow.pyfunc.load_model(f"models:/{name}/{version}")


def download_sums(name: str, version: str, folder: Path) -> dict[str, str]:
    """Fetch SHA256SUMS of a version, compare it with the registry's tag, and return sha256 by name.

    Raises:
        UserError: see `fetch_files`.
    """
    expected = _logged_model(name, version).tags.get(TAG)
    if expected is None:
        raise UserError(
            f"the registry has no tag {TAG} of it: it was registered without sums, so nobody can say whether it is "
            f"whole; if you trust it, `unetpp seal {name}/{version}` seals it as it is"
        )
    _download(f"{_location(name, version)}/{SUMS}", folder)
    if sha256(folder / SUMS) != expected:
        raise UserError(
            f"{SUMS}: its bytes are not those that the registry's tag {TAG} names ({expected[:12]}): the model is "
            "damaged, or was changed after it was registered; it is not loaded: run `dvc repro --force --single-item "
            "register` to register it again"
        )
    return sealed_files(folder)


def seal_version(client: MlflowClient, name: str, version: str) -> str:
    """Seal a version that was registered without sums; one that has them is compared. Returns what was done.

    What lies there in another form than today's is written anew, from the model file of its run.

    Raises:
        UserError: a sealed one is damaged, or there is no model that can be read.
    """
    model = _logged_model(name, version)
    if TAG in model.tags:
        fetch_version(name, version)
        return "is sealed already, and whole"
    with scratch() as parent:
        folder = Path(download_artifacts(_location(name, version), dst_path=str(parent)))
        shutil.rmtree(folder / "evidence", ignore_errors=True)  # which has sums of its own
        if (folder / SUMS).is_file():  # they were uploaded, and the tag was lost
            check_seal(folder)
            digest = sha256(folder / SUMS)
        elif (folder / MODEL).is_file():
            load_model(folder)
            digest = seal(folder)
        else:
            found, folder = client.get_model_version(name, version), parent / "anew"
            digest = write_model(folder, fetch_trained(client, found), int(found.tags["depth"]), model)
        upload_model(client, model.model_id, folder)
    client.set_logged_model_tags(model.model_id, {TAG: digest})
    return "is sealed as it is"


def _logged_model(name: str, version: str) -> LoggedModel:
    client = MlflowClient()
    return client.get_logged_model(logged_model_id(client, name, version))


def _location(name: str, version: str) -> str:
    return _logged_model(name, version).artifact_location.rstrip("/")


def _download(uri: str, folder: Path) -> None:
    try:
        download_artifacts(uri, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        missing = isinstance(error, FileNotFoundError) or "No such" in str(error) or "not found" in str(error).lower()
        if not missing:
            raise
        raise UserError(
            f"{uri.rpartition('/')[2]}: no such file in {uri.rpartition('/')[0]}; expected what the register stage "
            "uploads: bring mlruns/ that belongs to mlflow.db, or register it again"
        ) from None


def logged_model_id(client: MlflowClient, name: str, version: str) -> str:
    """The model behind a version; of a copied version the one behind its original."""
    source = str(client.get_model_version(name, version).source)
    for _ in range(10):
        inner = source.removeprefix("models:/")
        if "/" not in inner:
            return inner
        source = str(client.get_model_version(*inner.rsplit("/", 1)).source)
    raise UserError(f"models:/{name}/{version}: found the source {source}; expected a logged model")


def parse_uri(uri: str) -> tuple[str, str, bool]:
    """`models:/NAME@ALIAS` as (NAME, ALIAS, True), `models:/NAME/VERSION` as (NAME, VERSION, False).

    Raises:
        UserError: neither.
    """
    name, mark, alias = uri.removeprefix("models:/").partition("@")
    if not mark:
        name, _, alias = name.partition("/")
    if not uri.startswith("models:/") or not name or not alias:
        raise UserError(f"found model {uri!r}; expected models:/NAME@ALIAS or models:/NAME/VERSION")
    return name, alias, bool(mark)


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        UserError: no such model, version or alias; the message names those that exist.
    """
    name, which, is_alias = parse_uri(uri)
    model = find_model(client, name)
    try:
        return client.get_model_version_by_alias(name, which) if is_alias else client.get_model_version(name, which)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        versions = sorted(int(one.version) for one in client.search_model_versions(f"name = '{name}'"))
        aliases, numbers = (", ".join(map(str, found)) or "(none)" for found in (sorted(model.aliases), versions))
        store = redacted(client.tracking_uri)
        raise UserError(
            f"{uri}: no such version in {store}; {name} has the aliases {aliases} and the versions {numbers}"
        ) from None


def find_model(client: MlflowClient, name: str) -> RegisteredModel:
    """A registered model.

    Raises:
        UserError: there is none of this name; the message names those that exist.
    """
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        there = ", ".join(f"models:/{one}" for one in models) or "no registered model: `dvc repro register` makes one"
        raise UserError(f"models:/{name}: no such model in {redacted(client.tracking_uri)}; it holds {there}")
    return client.get_registered_model(name)
