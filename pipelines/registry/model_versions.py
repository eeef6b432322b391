"""Models and versions in MLflow's registry: logging them, and finding them by address. `load` reads them back.

An existing model or version is found by its tags and used again; nothing is logged twice. A model consists of weights
as safetensors, numbers as JSON, and SHA256SUMS of all files: no pickle, no code.
"""

import base64
import logging
import os
import warnings
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from pipelines.core.checksums import seal
from pipelines.core.files import scratch
from pipelines.core.redaction import redacted
from pipelines.registry import evidence
from unetpp.errors import UserError
from unetpp.models.model_file import MODEL, Trained

with warnings.catch_warnings():
    # On import, mlflow and sqlalchemy warn about each other (deprecated loaders, type hints).
    warnings.simplefilter("ignore")
    import mlflow
    import mlflow.pyfunc
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import PyFuncModel

    from pipelines.served.params import params_schema

logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it logs each example that it checks
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # there would be one for each small file
# MLflow copies a run's metrics of a step into a model that is logged "at" that step. Nothing is logged at step -1.
NO_STEP = -1
TAG = "sha256sums"  # tag of a logged model: the sha256 of its SHA256SUMS
# What a serving machine needs besides this package, which is installed from its own source: its name in a package index
# may belong to a stranger.
RUNTIMES = ("onnxruntime", "openvino")  # with exports: those of these that are installed here
PARTING = ("scikit-image", "scipy")  # if objects are separated
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
    """The run's model with these tags, logged if it is missing: a pyfunc whose code is in `pipelines.served`.

    Args:
        depth: the depth to which the network is pruned; the heads of the shallower depths stay.
        params, tags: those of a new model; an existing one is found by the tags fingerprint and depth.
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
    # A model that an interrupted run left incomplete is uploaded again.
    model = found[0] if found else client.create_logged_model(experiment, name, run.info.run_id, tags, params)
    with scratch() as parent:
        folder = parent / "model"
        digest = write_model(folder, trained, depth, model, exports, measured)
        outputs = client.get_run(run.info.run_id).outputs
        if model.model_id not in {one.model_id for one in (outputs.model_outputs if outputs else [])}:
            client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=NO_STEP)])
        # The sha256 is in the database, the files in the artifact store: changing one of the two is detected.
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
    """Write the registered model of a depth as a folder that MLflow serves; returns the sha256 of its SHA256SUMS.

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
        warnings.simplefilter("ignore")  # about the input without a schema: it has many forms (docs/serving.md)
        mlflow.pyfunc.save_model(
            folder,
            # Not `python_model`: that would put code, or a pickle, into the model's folder.
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
    """Packages pinned to the versions installed here; runtimes that are not installed are left out."""
    there = [package for package in packages if package not in RUNTIMES or find_spec(package)]
    return [f"{package}=={installed(package).split('+')[0]}" for package in there]


def find_or_create_version(
    client: MlflowClient, name: str, model: LoggedModel, run: Run, tags: dict[str, str]
) -> ModelVersion:
    """The version of a logged model in an existing registered model, created if it is missing.

    Of several versions the first is kept and the others are deleted: a response may be lost after the version was
    created, and a process that lost its turn may have created one. Numbers are assigned in order, so a process that
    created a version finds all lower ones.
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
    """Tag a version and its model with whether reading it back succeeded; one that failed is never used again."""
    value = str(verified).lower()
    client.set_model_version_tag(name, version, "verified", value)
    client.set_logged_model_tags(model_id, {"verified": value})


def load_served(name: str, version: str) -> PyFuncModel:
    """A version as `mlflow models serve` loads it."""
    return mlflow.pyfunc.load_model(f"models:/{name}/{version}")


def logged_model(name: str, version: str) -> LoggedModel:
    """The model behind a version."""
    client = MlflowClient()
    return client.get_logged_model(logged_model_id(client, name, version))


def location(name: str, version: str) -> str:
    """The artifact folder of the model behind a version, as a URI."""
    return logged_model(name, version).artifact_location.rstrip("/")


def logged_model_id(client: MlflowClient, name: str, version: str) -> str:
    """The id of the model behind a version; for a copied version, of the model behind the original."""
    source = str(client.get_model_version(name, version).source)
    for _ in range(10):
        inner = source.removeprefix("models:/")
        if "/" not in inner:
            return inner
        source = str(client.get_model_version(*inner.rsplit("/", 1)).source)
    raise UserError(
        f"models:/{name}/{version}: found the source {source}; expected a logged model: `dvc repro --force "
        "--single-item register` registers a new version"
    )


def parse_uri(uri: str) -> tuple[str, str, bool]:
    """`models:/NAME@ALIAS` as (NAME, ALIAS, True), `models:/NAME/VERSION` as (NAME, VERSION, False).

    Raises:
        UserError: it is neither.
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
        there = ", ".join(f"models:/{one}" for one in models) or "no models; `dvc repro register` registers one"
        raise UserError(f"models:/{name}: no such model in {redacted(client.tracking_uri)}, which has {there}")
    return client.get_registered_model(name)
