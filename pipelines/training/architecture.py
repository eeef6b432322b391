"""What stage search passes to train: widths, values of other params, and optionally initial weights."""

from pathlib import Path

from pydantic import ValidationError

from pipelines.core.files import read_yaml
from pipelines.core.params import Params
from pipelines.core.training_sections import Architecture
from pipelines.training.spec import Init
from unetpp.errors import UserError
from unetpp.files import check_sha256, sha256


def read_architecture(path: Path) -> Architecture:
    """What search chose: widths, values of other params by dotted key, and optionally initial weights.

    Raises:
        UserError: the file is missing, or is not an architecture.
    """
    found = read_yaml(path, "run `dvc repro search`, which writes it")
    try:
        return Architecture.model_validate(found)
    except ValidationError:
        raise UserError(
            f"{path}: found {found!r}; expected `widths:` with 2 to 7 positive whole numbers, and optionally `params:` "
            "with values by dotted key and `init:` with a file of weights"
        ) from None


def find_init(path: Path, chosen: Architecture, params: Params) -> Init | None:
    """The initial weights that train.init requests; None if it requests none, or if search ran no trial.

    Raises:
        UserError: the file that the search kept is missing, damaged, or from another model.
    """
    asked, origin = params.train.init, chosen.init_origin
    if asked is None or (asked == "search" and chosen.init is None):
        return None
    if asked != (found := origin.asked if origin else "search"):
        raise UserError(
            f"{path}: found {found if chosen.init else 'no weights'} as initial weights; expected those of "
            f"train.init={asked}: run `dvc repro search`, which fetches them (if that stage is frozen, first `dvc "
            "unfreeze search`)"
        )
    assert chosen.init is not None
    file = path.parent / chosen.init
    if not file.is_file():
        raise UserError(
            f"{path}: found no {file.name} next to it, the initial weights: run `dvc repro search`, or set "
            "train.init=null"
        )
    digest = sha256(file)
    check_sha256(file, digest, chosen.init_sha256 or digest, f"{path} names another file: run `dvc repro search`")
    return Init(str(file.absolute()), digest, origin and origin.model_dump(include={"uri", "sha256"}))
