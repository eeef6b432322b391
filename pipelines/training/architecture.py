"""What a search hands to train: widths, other values of params, perhaps weights to begin with."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from pipelines.core.checksums import sha256
from pipelines.core.params import Params
from pipelines.core.training_sections import Architecture
from pipelines.training.spec import Init
from unetpp.errors import UserError


def read_architecture(path: Path) -> Architecture:
    """What search chose: widths, other values of params by dotted key, and perhaps weights to begin with.

    Raises:
        UserError: no such file, or not an architecture.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `dvc repro search` writes it")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return Architecture.model_validate(found)
    except ValidationError:
        raise UserError(
            f"{path}: found {found!r}; expected `widths:` with 2 to 7 positive whole numbers, and perhaps `params:` "
            "with values by dotted key and `init:` with a file of weights"
        ) from None


def find_init(path: Path, chosen: Architecture, params: Params) -> Init | None:
    """The weights that train.init asks for; None where it asks for none, or search had no trial.

    Raises:
        UserError: the file that the search kept is gone.
    """
    if params.train.init is None or chosen.init is None:
        return None
    file = path.parent / chosen.init
    if not file.is_file():
        raise UserError(
            f"{path}: there is no {file.name} beside it, the weights to begin with: run `dvc repro search`, or set "
            "train.init=null"
        )
    return Init(str(file.absolute()), sha256(file))
