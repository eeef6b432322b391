"""Models and versions in MLflow's registry: logging, finding again, reading back and loading.

A model or version that is there already is found by its tags and taken; nothing is made twice.
"""

import json
import warnings

import numpy as np
import torch
from torch import nn

from pipelines.tracking import connect, explained, shown, tracking_uri
from unetpp.errors import UserError

with warnings.catch_warnings():
    # While they are imported, mlflow and sqlalchemy warn of each other (deprecated loaders, type hints).
    warnings.simplefilter("ignore")
    import mlflow
    import mlflow.pyfunc.model
    from mlflow import MlflowClient
    from mlflow import pytorch as pytorch_flavor
    from mlflow.entities import LoggedModel, LoggedModelStatus, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

# Model metrics of a run's step are copied into a model that is logged "at" that step. Nothing is logged at -1.
NO_STEP = -1


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
    # What an interrupted run left behind goes: a model can be linked to its run once, and that may be done already.
    for left in found:
        client.delete_logged_model(left.model_id)
    model = client.create_logged_model(experiment, name, run.info.run_id, tags, params)
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
