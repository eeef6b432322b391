"""Files that anybody may have changed: text, JSON and sums; read whole, or refused in one line that names the file."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from unetpp.errors import UserError


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(name: str | Path, found: str, expected: str, advice: str) -> None:
    """Compare the digest of what the user knows as `name` with the expected one.

    Raises:
        UserError: they differ; it ends with `advice`.
    """
    if found != expected:
        raise UserError(f"{name}: found the sha256 {found}; expected {expected}: {advice}")


def read_text(path: str | Path, fix: str) -> str:
    """A file's text.

    Raises:
        UserError: no such file, one that cannot be read, or no UTF-8; it ends with `fix`.
    """
    try:
        return _decoded(Path(path).read_bytes(), path, fix)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {reason}; {fix}") from None


def read_json(path: str | Path, fix: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """What a file holds as one JSON object; see `parse_json`."""
    return parse_json(read_text(path, fix), path, fix, needed)


def parse_json(content: str | bytes, name: str | Path, fix: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """The JSON object of a file that is read already.

    Raises:
        UserError: it is no JSON object in UTF-8, or lacks one of the keys `needed`; it ends with `fix`.
    """
    try:
        found = json.loads(content if isinstance(content, str) else _decoded(content, name, fix))
    except RecursionError:
        raise UserError(f"{name}: found JSON that is nested too deeply; {fix}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: not JSON ({error}); {fix}") from None
    return check_keys(found, name, fix, needed)


def check_keys(found: Any, name: str | Path, fix: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """What was read, if it is one of names and values, with the keys `needed`.

    Raises:
        UserError: it is not; it ends with `fix`.
    """
    if not isinstance(found, dict):
        raise UserError(f"{name}: found {type(found).__name__}; expected names with values: {fix}")
    if lacking := [key for key in needed if key not in found]:
        raise UserError(f"{name}: it lacks {', '.join(lacking)}; {fix}")
    return found


def _decoded(content: bytes, name: str | Path, fix: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = "UTF-16 text" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else f"other bytes ({error.reason})"
        raise UserError(f"{name}: found {kind}; expected text in UTF-8: {fix}") from None
