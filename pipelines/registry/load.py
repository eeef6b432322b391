"""A trained model by any name that a user gives it: the one place where commands and benchmarks read models."""

from pathlib import Path

from unetpp.export.safetensors_files import CONFIG, WEIGHTS, read_safetensors
from unetpp.inference.model_file import Trained, load_model


def load_trained(model: str | Path, store: str | None = None) -> Trained:
    """A model with all the heads that it has.

    Args:
        model: a folder of the train stage or its model.pt, the folder of an exported depth or its model.safetensors,
            or `models:/NAME@ALIAS` or `models:/NAME/VERSION`, whose bytes are compared with what was registered.
        store: URI of the registry; by default that of the project in this folder.

    Raises:
        UserError: no such model (of a registry the message names those that exist), or a damaged one.
    """
    if str(model).startswith("models:/"):
        from pipelines.registry import mlflow_store, model_versions  # takes seconds, and a file needs none of it

        model_versions.parse_uri(str(model))  # what is no address is refused before anybody is asked
        with mlflow_store.reading(store or mlflow_store.project_uri()) as client:
            version = model_versions.find_version(client, str(model))
            return model_versions.fetch_version(version.name, str(version.version))
    path = Path(model)
    if path.suffix == Path(WEIGHTS).suffix:
        return read_safetensors(path.parent)
    return read_safetensors(path) if (path / CONFIG).is_file() else load_model(path)
