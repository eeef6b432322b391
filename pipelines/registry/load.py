"""Registered versions by address, with their sha256 verified: for `unetpp.load` and `unetpp seal`."""

import atexit
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from pipelines.core.checksums import SUMS, check_seal, seal, sealed_files
from pipelines.core.files import scratch
from pipelines.registry import mlflow_store, model_versions
from pipelines.registry.model_versions import TAG
from unetpp.errors import UserError, said
from unetpp.files import sha256
from unetpp.models.model_file import MODEL, Trained, load_model


def load_registered(uri: str, store: str | None = None) -> Trained:
    """A registered version with all its heads; its files are verified.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        store: URI of the registry; by default that of the project in this folder.

    Raises:
        UserError: no such model, version or alias (the message names those that exist), a damaged one, or no store.
    """
    model_versions.parse_uri(uri)  # refuse an invalid address before connecting
    with mlflow_store.reading(store or mlflow_store.project_uri()) as client:
        version = model_versions.find_version(client, uri)
        return fetch_version(version.name, str(version.version))


_held = ExitStack()  # folders that are kept until this process ends
atexit.register(_held.close)


def fetch_registered(uri: str) -> Path:
    """The files of a registered version in a folder that is kept until this process ends: for `unetpp.find_family`.

    Raises:
        UserError: as `load_registered`.
    """
    return _held.enter_context(fetched_version(uri))


@contextmanager
def fetched_version(uri: str, store: str | None = None) -> Iterator[Path]:
    """The files of a registered version, including exports and engines.json, in a folder for the time of the block.

    Args:
        uri, store: as for `load_registered`.

    Raises:
        UserError: as `load_registered`.
    """
    model_versions.parse_uri(uri)
    with scratch() as folder:
        with mlflow_store.reading(store or mlflow_store.project_uri()) as client:
            version = model_versions.find_version(client, uri)
            fetch_files(version.name, str(version.version), folder)
        yield folder


def load_trained(uri: str, store: str | None = None) -> tuple[str, Trained]:
    """The version's address by number, and its whole family as trained, for further training.

    A version has one depth, with batch norm folded into the convolutions; its run keeps the whole network.

    Args:
        uri, store: as for `load_registered`.

    Raises:
        UserError: as `load_registered`; or the version was not made from the network of its run.
    """
    model_versions.parse_uri(uri)
    with mlflow_store.reading(store or mlflow_store.project_uri()) as client:
        version = model_versions.find_version(client, uri)
        found = f"models:/{version.name}/{version.version}"
        served = fetch_version(version.name, str(version.version)).network
        trained = fetch_trained(client, version)
    expected = served.state_dict()
    made = trained.folded(served.depth, keep_heads=True).network.state_dict()
    if made.keys() != expected.keys() or not all(torch.allclose(made[key], expected[key]) for key in made):
        raise UserError(
            f"{found}: the model in its run is not the one that was registered; run `dvc repro --force --single-item "
            "register` to register it again"
        )
    return found, trained


def fetch_files(name: str, version: str, folder: Path) -> None:
    """Download a registered version's own files, including exports and engines.json, into a folder.

    Only files listed in SHA256SUMS are downloaded, and their hashes are verified; no code in the model's folder runs.

    Raises:
        UserError: a file is missing or has changed since it was logged, or stage register did not log it.
    """
    with _naming(name, version, folder):
        location = model_versions.location(name, version)
        for file in download_sums(name, version, folder):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            _download(f"{location}/{file}", (folder / file).parent)
        check_seal(folder)


@contextmanager
def _naming(name: str, version: str, folder: Path) -> Iterator[None]:
    """Errors of the block name the version instead of the folder that its files are in."""
    try:
        yield
    except UserError as error:
        raise UserError(f"models:/{name}/{version}: {str(error).replace(f'{folder}/', '')}") from None


def fetch_version(name: str, version: str) -> Trained:
    """A registered version, with the heads of all its depths.

    Raises:
        UserError: as `fetch_files`.
    """
    with scratch() as folder:
        fetch_files(name, version, folder)
        with _naming(name, version, folder):
            return load_model(folder)


def fetch_trained(client, version) -> Trained:
    """The whole network from which a version was made, as it was trained, from the version's run.

    Raises:
        UserError: the run has no model, or a damaged one.
    """
    address = f"models:/{version.name}/{version.version}"
    with scratch() as folder:
        try:
            return load_model(client.download_artifacts(str(version.run_id), "model", str(folder)))
        except (mlflow_store.MlflowException, OSError) as error:
            raise UserError(
                f"{address}: found no trained model in its run ({said(error)}); run `dvc repro --force --single-item "
                "register` to register it again"
            ) from None
        except UserError as error:
            raise UserError(f"{address}, its run: {str(error).replace(f'{folder}/', '')}") from None


def download_sums(name: str, version: str, folder: Path) -> dict[str, str]:
    """Download SHA256SUMS of a version, verify it against the registry's tag, and return sha256 by file name.

    Raises:
        UserError: as `fetch_files`.
    """
    expected = model_versions.logged_model(name, version).tags.get(TAG)
    if expected is None:
        raise UserError(
            f"found no tag {TAG} in the registry: it was registered without checksums, so its files cannot be "
            f"verified; if you trust it, `unetpp seal {name}/{version}` seals it as it is"
        )
    _download(f"{model_versions.location(name, version)}/{SUMS}", folder)
    if sha256(folder / SUMS) != expected:
        raise UserError(
            f"{SUMS}: its sha256 is not that of the registry's tag {TAG} ({expected[:12]}): the model is damaged, or "
            "was changed after it was registered, and is not loaded: run `dvc repro --force --single-item register` to "
            "register it again"
        )
    return sealed_files(folder)


def _download(uri: str, folder: Path) -> Path:
    try:
        return Path(mlflow_store.mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except (mlflow_store.MlflowException, OSError) as error:
        missing = isinstance(error, FileNotFoundError) or "No such" in str(error) or "not found" in str(error).lower()
        if not missing:
            raise
        raise UserError(
            f"{uri.rpartition('/')[2]}: no such file in {uri.rpartition('/')[0]}; expected what the register stage "
            "uploads: restore the mlruns/ that belongs to mlflow.db, or register it again"
        ) from None


def seal_registered(model: str, store: str) -> str:
    """Seal what was registered without checksums; returns a line for each version.

    Args:
        model: NAME (all of its versions), NAME@ALIAS or NAME/VERSION, with or without models:/.
        store: URI of the registry.

    Raises:
        UserError: no such model or version, or no store; or some are damaged, after the others were sealed.
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
                done = _seal_version(client, one.name, str(one.version))
                sealed.append(f"{one.name}/{one.version} {done}")
            except UserError as error:
                refused.append(str(error))
    if refused:
        raise UserError("\n".join([*refused, *sealed]))
    return "\n".join(sealed)


def _seal_version(client, name: str, version: str) -> str:
    """Seal a version that was registered without checksums, or verify one that has them; returns what was done.

    If its files are in an older format, they are written again from the model file of its run.

    Raises:
        UserError: a sealed version is damaged, or there is no readable model.
    """
    model = model_versions.logged_model(name, version)
    if TAG in model.tags:
        fetch_version(name, version)
        return "is already sealed, and intact"
    with scratch() as parent:
        folder = _download(model_versions.location(name, version), parent)
        shutil.rmtree(folder / "evidence", ignore_errors=True)  # it has checksums of its own
        if (folder / SUMS).is_file():  # they were uploaded, and the tag was lost
            check_seal(folder)
            digest = sha256(folder / SUMS)
        elif (folder / MODEL).is_file():
            load_model(folder)
            digest = seal(folder)
        else:
            found, folder = client.get_model_version(name, version), parent / "anew"
            digest = model_versions.write_model(folder, fetch_trained(client, found), int(found.tags["depth"]), model)
        model_versions.upload_model(client, model.model_id, folder)
    client.set_logged_model_tags(model.model_id, {TAG: digest})
    return "is sealed as it is"
