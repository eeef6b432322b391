"""What a search hands to train: widths, other values of params, perhaps weights to begin with."""

from pathlib import Path

from pydantic import ValidationError

from pipelines.core.files import read_yaml
from pipelines.core.params import Params
from pipelines.core.sections.search import Architecture
from pipelines.training.spec import Init
from unetpp.errors import UserError
from unetpp.files import check_sha256, sha256


def read_architecture(path: Path) -> Architecture:
    """What search chose: widths, other values of params by dotted key, and perhaps weights to begin with.

    Raises:
        UserError: no such file, or not an architecture.
    """
    found = read_yaml(path, "run `dvc repro search`, which writes it")
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
        UserError: the file that the search kept is gone, damaged, or of another model.
    """
    asked, origin = params.train.init, chosen.init_origin
    if asked is None or (asked == "search" and chosen.init is None):
        return None
    if asked != (found := origin.asked if origin else "search"):
        raise UserError(
            f"{path}: found {found if chosen.init else 'no weights'} to begin with; expected train.init={asked}: run "
            "`dvc repro search`, which fetches them (`dvc unfreeze search` first, if it is frozen)"
        )
    assert chosen.init is not None
    file = path.parent / chosen.init
    if not file.is_file():
        raise UserError(
            f"{path}: there is no {file.name} beside it, the weights to begin with: run `dvc repro search`, or set "
            "train.init=null"
        )
    digest = sha256(file)
    check_sha256(file, digest, chosen.init_sha256 or digest, f"it is not that of {path}: run `dvc repro search`")
    return Init(str(file.absolute()), digest, origin and origin.model_dump(include={"uri", "sha256"}))
