"""A trained model from wherever it lies."""

from importlib.metadata import entry_points
from pathlib import Path

from unetpp.errors import UserError
from unetpp.models.model_file import Trained, load_model

LOADERS = "unetpp.loaders"  # entry points by the scheme of a URI; `unetpp[pipelines]` brings that of MLflow's registry


def load(path_or_uri: str | Path) -> Trained:
    """A trained model: what `Predictor` takes. Runs no code of its author.

    Args:
        path_or_uri: a `model.safetensors` that was trained or exported, or its folder, or the `models:/NAME@ALIAS` or
            `models:/NAME/VERSION` of a registered version.

    Raises:
        UserError: no such model, a damaged one, a file that is none of ours, or a URI that nothing installed
            reads.
    """
    text = str(path_or_uri)
    scheme, mark, _ = text.partition(":/")
    if mark and len(scheme) > 1:  # one letter is a drive of Windows
        for loader in entry_points(group=LOADERS, name=scheme):
            try:
                return loader.load()(text)
            except ModuleNotFoundError as error:
                raise UserError(f"{text}: {error.name} is not installed: pip install 'unetpp[pipelines]'") from None
        raise UserError(f"{text}: nothing installed reads {scheme}:/ ; pip install 'unetpp[pipelines]' reads models:/")
    path = Path(path_or_uri)
    if path.suffix in (".onnx", ".pt2"):
        raise UserError(
            f"{path}: an exported graph, which is no trained model and may run its author's code: load its folder, "
            f"{path.parent}, or take an .onnx by `unetpp.find_family`"
        )
    return load_model(path)
