"""What `unetpp.load` calls for a `models:/` URI, by the entry point of this package."""

from pipelines.registry import mlflow_store, model_versions
from unetpp.inference.model_file import Trained


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
