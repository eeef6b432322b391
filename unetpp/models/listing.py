"""exports.json, which lists the files of an export with their sums: read, and compared."""

from pathlib import Path

from unetpp.errors import UserError
from unetpp.files import check_sha256, read_json, sha256

LISTING = "exports.json"
AGAIN = "export again: `dvc repro export`, or `unetpp export`"


def read_exports(folder: Path, model_sha256: str | None = None) -> list[dict]:
    """The entries of a folder's exports.json, each of which has the bytes that it says.

    Args:
        model_sha256: of the model file that they have to be made of.

    Raises:
        UserError: no such file, exports of another model, or a file of other bytes.
    """
    path = folder / LISTING
    found = read_json(path, AGAIN, ("exports",))
    if model_sha256:
        advice = f"it was exported of another model: {AGAIN}"
        check_sha256(f"{path}: model_sha256", str(found.get("model_sha256")), model_sha256, advice)
    for one in found["exports"]:
        _check(folder, one)
    return found["exports"]


def check_export(file: Path) -> None:
    """Compare one file, `L2/model.onnx`, with the exports.json of its folder's folder.

    Raises:
        UserError: it has other bytes, or is not listed there.
    """
    folder, name = file.absolute().parents[1], "/".join(file.absolute().parts[-2:])
    fix = f"by it {file.name} is checked: copy the folder of the export as a whole, or give {file.parent}"
    entries = {one["file"]: one for one in read_json(folder / LISTING, fix, ("exports",))["exports"]}
    if name not in entries:
        raise UserError(f"{folder / LISTING}: it does not list {name}; {AGAIN}")
    _check(folder, entries[name])


def _check(folder: Path, entry: dict) -> None:
    file = folder / entry["file"]
    if not file.is_file():
        raise UserError(f"{file}: no such file, and {LISTING} lists it; {AGAIN}")
    check_sha256(file, sha256(file), entry["sha256"], f"it is damaged, or not the one of {LISTING}: {AGAIN}")
