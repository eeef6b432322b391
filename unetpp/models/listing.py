"""exports.json, which lists the files of an export with their sums: read, and compared."""

from pathlib import Path
from typing import Any

from unetpp.errors import UserError
from unetpp.files import check_sha256, read_json, sha256

LISTING = "exports.json"
AGAIN = "export again: `dvc repro export`, or `unetpp export`"


def read_listing(folder: Path, fix: str = AGAIN) -> dict[str, Any]:
    """What a folder's exports.json says; of what lies beside it nothing is compared.

    Raises:
        UserError: no such file, or not such a file; it ends with `fix`.
    """
    return read_json(folder / LISTING, fix, ("exports",))


def read_exports(folder: Path, model_sha256: str | None = None) -> list[dict]:
    """The entries of a folder's exports.json, each of which has the bytes that it says.

    Args:
        model_sha256: of the model file that they have to be made of.

    Raises:
        UserError: no such file, exports of another model, or a file of other bytes.
    """
    found = read_listing(folder)
    if model_sha256:
        advice = f"it was exported of another model: {AGAIN}"
        check_sha256(f"{folder / LISTING}: model_sha256", str(found.get("model_sha256")), model_sha256, advice)
    for one in found["exports"]:
        check_entry(folder, one)
    return found["exports"]


def check_export(file: Path) -> dict:
    """The entry of one file, `L2/model.onnx`, in the exports.json of its folder's folder, after it was compared.

    Raises:
        UserError: it has other bytes, or is not listed there.
    """
    folder, name = file.absolute().parents[1], "/".join(file.absolute().parts[-2:])
    fix = f"by it {file.name} is checked: copy the folder of the export as a whole, or give {file.parent}"
    entries = {one["file"]: one for one in read_listing(folder, fix)["exports"]}
    if name not in entries:
        raise UserError(f"{folder / LISTING}: it does not list {name}; {AGAIN}")
    check_entry(folder, entries[name])
    return entries[name]


def check_entry(folder: Path, entry: dict) -> Path:
    """The file of an entry, after its bytes were compared.

    Raises:
        UserError: no such file, or one of other bytes.
    """
    file = folder / entry["file"]
    if not file.is_file():
        raise UserError(f"{file}: no such file, and {LISTING} lists it; {AGAIN}")
    check_sha256(file, sha256(file), entry["sha256"], f"it is damaged, or not the one of {LISTING}: {AGAIN}")
    return file
