"""Registered versions by address: what `unetpp.load` calls for a `models:/` URI, and `unetpp seal`."""

import atexit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from pipelines.core.temporary_folders import scratch
from pipelines.registry import mlflow_store, model_versions
from unetpp.errors import UserError
from unetpp.models.model_file import Trained


def load_registered(uri: str, store: str | None = None) -> Trained:
    """A registered version with all the heads that it has; its bytes are compared with what was registered.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        store: URI of the registry; by default that of the project in this folder.

    Raises:
        UserError: no such model, version or alias (the message names those that exist), a damaged one, or no store.
    """
    model_versions.parse_uri(uri)  # what is no address is refused before anybody is asked
    with mlflow_store.reading(store or mlflow_store.project_uri()) as client:
        version = model_versions.find_version(client, uri)
        return model_versions.fetch_version(version.name, str(version.version))


_held = ExitStack()  # of folders that are there until this process ends
atexit.register(_held.close)


def fetch_registered(uri: str) -> Path:
    """The files of a registered version in a folder that is there until this process ends: for `unetpp.find_family`.

    Raises:
        UserError: as `load_registered`.
    """
    return _held.enter_context(fetched_version(uri))


@contextmanager
def fetched_version(uri: str, store: str | None = None) -> Iterator[Path]:
    """The files of a registered version, exports and engines.json among them, in a folder for the time of the block.

    Args:
        uri, store: as of `load_registered`.

    Raises:
        UserError: as `load_registered`.
    """
    model_versions.parse_uri(uri)
    with scratch() as folder:
        with mlflow_store.reading(store or mlflow_store.project_uri()) as client:
            version = model_versions.find_version(client, uri)
            model_versions.fetch_files(version.name, str(version.version), folder)
        yield folder


def load_trained(uri: str, store: str | None = None) -> tuple[str, Trained]:
    """The family of a registered version as it was trained, to train it further, and the version's own address.

    A version has one depth, with batch norm folded away; its run keeps the whole network.

    Args:
        uri, store: as of `load_registered`.

    Raises:
        UserError: as `load_registered`; or the network of the run is not what the version was made of.
    """
    model_versions.parse_uri(uri)
    with mlflow_store.reading(store or mlflow_store.project_uri()) as client:
        version = model_versions.find_version(client, uri)
        found = f"models:/{version.name}/{version.version}"
        served = model_versions.fetch_version(version.name, str(version.version)).network
        trained = model_versions.fetch_trained(client, version)
    expected = served.state_dict()
    made = trained.folded(served.depth, keep_heads=True).network.state_dict()
    if made.keys() != expected.keys() or not all(torch.allclose(made[key], expected[key]) for key in made):
        raise UserError(
            f"{found}: the model that its run keeps is another one than was registered; run `dvc repro --force "
            "--single-item register` to register it again"
        )
    return found, trained


def seal_registered(model: str, store: str) -> str:
    """Seal what was registered without sums; returns a line for each version.

    Args:
        model: NAME (all of its versions), NAME@ALIAS or NAME/VERSION, with or without models:/.
        store: URI of the registry.

    Raises:
        UserError: no such model or version, or no store; damaged ones, after the others were sealed.
    """
    name = model.removeprefix("models:/")
    with mlflow_store.reading(store) as client:
        if set("@/") & set(name):
            found = [model_versions.find_version(client, f"models:/{name}")]
        else:
            model_versions.find_model(client, name)
            found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))
        sealed, refused = [], []
        for one in found:
            try:
                done = model_versions.seal_version(client, one.name, str(one.version))
                sealed.append(f"{one.name}/{one.version} {done}")
            except UserError as error:
                refused.append(str(error))
    if refused:
        raise UserError("\n".join([*refused, *sealed]))
    return "\n".join(sealed)
