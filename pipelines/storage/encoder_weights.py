"""Pretrained weights of an encoder (`model.encoder_weights`): a file, or timm's own from its hub.

They are read where training starts, so on a cluster the file must have the same path on every machine.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.private import CACHE, make_private
from pipelines.core.sections.train import HUB, Model
from pipelines.core.temporary_folders import locked
from unetpp.errors import UserError
from unetpp.files import check_sha256, sha256
from unetpp.network.encoders import fetch_weights, load_weights, read_weights
from unetpp.network.model import NestedUNet


@dataclass(frozen=True)
class EncoderWeights:
    """The weights that `model.encoder_weights` names; `uri` names them in a model's lineage."""

    file: str
    sha256: str
    uri: str

    def load(self, network: NestedUNet) -> None:
        """Load them into the encoder of a network.

        Raises:
            UserError: the file has changed, or the weights are of another encoder.
        """
        if network.pyramid:
            file = Path(self.file)
            weights = read_weights(file)
            check_sha256(file, sha256(file), self.sha256, "it was changed since this training run was set up: rerun it")
            load_weights(network.pyramid, weights, f"model.encoder_weights={self.uri}")


def find_encoder_weights(model: Model) -> EncoderWeights | None:
    """The weights that section `model` names, fetched once if they are from the hub.

    Raises:
        UserError: no such file, or the hub cannot be reached.
    """
    asked, encoder = model.initial_weights, model.encoder
    if asked is None or encoder is None:
        return None
    if asked != HUB:
        file = Path(asked).expanduser().absolute()
        if not file.is_file():
            raise UserError(
                f"model.encoder_weights={asked}: no such file; expected a .safetensors or .pth of {encoder}, {HUB}, or "
                "null for random weights"
            )
        return EncoderWeights(str(file), sha256(file), asked)
    folder = make_private(CACHE / "encoders")
    file = folder / f"{encoder}.safetensors"
    with locked(folder / f"{encoder}.lock"):  # one of several processes fetches
        if not file.is_file():
            partial = file.with_suffix(".partial")
            fetch_weights(encoder, partial)
            os.replace(partial, file)
    return EncoderWeights(str(file), sha256(file), f"timm/{encoder}")
