"""Read exports.json, which lists the files of an export with their sums, and check the files."""

from pathlib import Path
from typing import Any

from unetpp.errors import UserError
from unetpp.files import check_sha256, read_json, sha256

LISTING = "exports.json"
AGAIN = "export again: `dvc repro export`, or `unetpp export`"


def read_listing(folder: Path, fix: str = AGAIN) -> dict[str, Any]:
    """The content of a folder's exports.json; the files next to it are not checked.

    Raises:
        UserError: the file is missing or not an exports.json; the message ends with `fix`.
    """
    return read_json(folder / LISTING, fix, ("exports",))


def read_exports(folder: Path, model_sha256: str | None = None) -> list[dict]:
    """The entries of a folder's exports.json, after checking every file.

    Args:
        model_sha256: sha256 of the model file from which they must have been exported.

    Raises:
        UserError: no exports.json, exports of another model, or a missing or changed file.
    """
    found = read_listing(folder)
    if model_sha256:
        advice = f"it was exported from another model: {AGAIN}"
        check_sha256(f"{folder / LISTING}: model_sha256", str(found.get("model_sha256")), model_sha256, advice)
    for one in found["exports"]:
        check_entry(folder, one)
    return found["exports"]


def check_export(file: Path) -> dict:
    """The entry of one file, such as `L2/model.onnx`, in the exports.json of its parent folder, after checking it.

    Raises:
        UserError: the file was changed, or is not listed there.
    """
    folder, name = file.absolute().parents[1], "/".join(file.absolute().parts[-2:])
    fix = f"{file.name} is checked against it: copy the whole folder of the export, or use {file.parent}"
    entries = {one["file"]: one for one in read_listing(folder, fix)["exports"]}
    if name not in entries:
        raise UserError(f"{folder / LISTING}: it does not list {name}; {AGAIN}")
    check_entry(folder, entries[name])
    return entries[name]


def check_entry(folder: Path, entry: dict) -> Path:
    """The file of an entry, after checking it.

    Raises:
        UserError: a missing or changed file.
    """
    file = folder / entry["file"]
    if not file.is_file():
        raise UserError(f"{file}: no such file, but {LISTING} lists it; {AGAIN}")
    check_sha256(file, sha256(file), entry["sha256"], f"it is damaged, or not the one of {LISTING}: {AGAIN}")
    return file
