"""SHA256SUMS over all files of a folder: written, and compared."""

from collections.abc import Collection
from pathlib import Path

from unetpp.errors import UserError
from unetpp.files import sha256

SUMS = "SHA256SUMS"
OF_A_MODEL = ("MLmodel", "model.safetensors")


def seal(folder: Path) -> str:
    """Write SHA256SUMS over all other files of a folder, as `sha256sum` does; returns its own hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    return sha256(folder / SUMS)


def sealed_files(folder: Path, needed: Collection[str] = OF_A_MODEL) -> dict[str, str]:
    """What SHA256SUMS of a folder, by default a model's, lists: sha256 by name.

    Raises:
        UserError: it is missing, lacks one of the names `needed`, or has a name that leads out of the folder.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        hashes = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / SUMS}: cannot be read ({error}); expected what the register stage logged") from None
    outside = [name for name in hashes if Path(name).is_absolute() or ".." in Path(name).parts]
    lacking = set(needed) - set(hashes)
    if outside or lacking:
        what = f"it names {outside[0]!r}" if outside else f"it lacks {', '.join(sorted(lacking))}"
        raise UserError(f"{folder / SUMS}: {what}; expected what the register stage logged: register it again")
    return hashes


def check_seal(folder: Path, needed: Collection[str] = OF_A_MODEL) -> None:
    """Compare the files of a folder, by default a model's, with its SHA256SUMS.

    Raises:
        UserError: a file is missing or has other bytes; the message names it.
    """
    for name, expected in sealed_files(folder, needed).items():
        found = sha256(folder / name) if (folder / name).is_file() else None
        if found != expected:
            what = f"found sha256 {found[:12]}" if found else "no such file"
            raise UserError(
                f"{folder / name}: {what}; expected {expected[:12]}, as {SUMS} says: it is damaged or was changed "
                "after it was registered, and is not loaded; load another version, or register it again"
            )
