"""Load a trained model from a file, folder or registry."""

from pathlib import Path

from unetpp.errors import UserError
from unetpp.models.addresses import LOADERS, is_address, resolve
from unetpp.models.model_file import Trained, load_model


def load(path_or_uri: str | Path) -> Trained:
    """Load a trained model, for example for `Predictor`. Runs no code of its author.

    Args:
        path_or_uri: a trained or exported `model.safetensors`, or its folder; or the `models:/NAME@ALIAS` or
            `models:/NAME/VERSION` of a registered version.

    Returns:
        the model, on the CPU and in eval mode.

    Raises:
        UserError: no such model, a damaged one, a file of another kind, or a URI that no installed package reads.
    """
    if is_address(str(path_or_uri)):
        return resolve(str(path_or_uri), LOADERS)
    path = Path(path_or_uri)
    if path.suffix in (".onnx", ".pt2"):
        raise UserError(
            f"{path}: an exported graph, which is not a trained model and may run its author's code: load its folder, "
            f"{path.parent}, or open an .onnx with `unetpp.find_family`"
        )
    return load_model(path)
