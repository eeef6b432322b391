"""Initial weights from a trained model (`train.init`), as stage search passes them to train.

Search fetches them once, so that from then on a `models:/` address stands for one version with one sha256. They are
next to architecture.yaml, which DVC tracks, and travel with it.
"""

from pathlib import Path

import torch
from torch import Tensor

from pipelines.core.files import write_json
from pipelines.core.params import Params
from pipelines.core.training_sections import Origin
from pipelines.training.spec import build_network
from unetpp.data.manifest import Manifest
from unetpp.errors import UserError
from unetpp.files import read_json
from unetpp.models.model_file import MODEL, Trained, load_model
from unetpp.network.pruning import transfer

RECORD = "init.json"


def write_begin(folder: Path, trained: Trained, asked: str, uri: str) -> None:
    """Write a model and its origin into a folder, which can also be sent to a cluster."""
    folder.mkdir()
    trained.save(folder / MODEL)
    write_json(folder / RECORD, {"asked": asked, "uri": uri, "sha256": trained.sha256})


def read_begin(folder: Path) -> tuple[Trained, Origin]:
    """What `write_begin` wrote."""
    return load_model(folder), Origin.model_validate(read_json(folder / RECORD, "run `dvc repro search`"))


def begin_with(
    begin: tuple[Trained, Origin], params: Params, widths: tuple[int, ...], manifest: Manifest
) -> tuple[dict[str, Tensor], list[int]]:
    """The weights of a model in the network of these params, and the depths whose heads are newly initialised.

    Args:
        begin: what `read_begin` returned.

    Raises:
        UserError: the two networks do not have the same structure.
    """
    trained, origin = begin
    torch.manual_seed(params.train.seed)
    network = build_network(params.model, widths, manifest)
    try:
        anew = transfer(trained.network, network)
    except UserError as error:
        wanted = f"search.widths=[{list(trained.network.widths)}]"
        raise UserError(
            f"train.init={origin.asked} ({origin.uri}): {error} (widths by {wanted}, in_channels by prepare.channels, "
            "the others in section model), or set train.init=null"
        ) from None
    return network.state_dict(), anew
