"""A trained model from wherever it lies."""

from pathlib import Path

from unetpp.errors import UserError
from unetpp.models.addresses import LOADERS, is_address, resolve
from unetpp.models.model_file import Trained, load_model


def load(path_or_uri: str | Path) -> Trained:
    """A trained model: what `Predictor` takes. Runs no code of its author.

    Args:
        path_or_uri: a `model.safetensors` that was trained or exported, or its folder, or the `models:/NAME@ALIAS` or
            `models:/NAME/VERSION` of a registered version.

    Raises:
        UserError: no such model, a damaged one, a file that is none of ours, or a URI that nothing installed
            reads.
    """
    if is_address(str(path_or_uri)):
        return resolve(str(path_or_uri), LOADERS)
    path = Path(path_or_uri)
    if path.suffix in (".onnx", ".pt2"):
        raise UserError(
            f"{path}: an exported graph, which is no trained model and may run its author's code: load its folder, "
            f"{path.parent}, or take an .onnx by `unetpp.find_family`"
        )
    return load_model(path)
