"""Read files that may have been changed: text, JSON and checksums; refused in one line that names the file."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from unetpp.errors import UserError


def sha256(path: str | Path) -> str:
    """The SHA-256 hex digest of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(name: str | Path, found: str, expected: str, advice: str) -> None:
    """Compare a digest with the expected one.

    Args:
        name: how messages refer to the file.

    Raises:
        UserError: they differ; the message ends with `advice`.
    """
    if found != expected:
        raise UserError(f"{name}: found the sha256 {found}; expected {expected}: {advice}")


def read_text(path: str | Path, fix: str) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: no such file, an unreadable file, or not UTF-8; the message ends with `fix`.
    """
    try:
        return _decoded(Path(path).read_bytes(), path, fix)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {reason}; {fix}") from None


def read_json(path: str | Path, fix: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """The JSON object in a file; see `parse_json`."""
    return parse_json(read_text(path, fix), path, fix, needed)


def parse_json(content: str | bytes, name: str | Path, fix: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """The JSON object in the content of a file.

    Raises:
        UserError: not a JSON object in UTF-8, or one of the keys `needed` is missing; the message ends with `fix`.
    """
    try:
        found = json.loads(content if isinstance(content, str) else _decoded(content, name, fix))
    except RecursionError:
        raise UserError(f"{name}: found JSON that is nested too deeply; {fix}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: not JSON ({error}); {fix}") from None
    return check_keys(found, name, fix, needed)


def check_keys(found: Any, name: str | Path, fix: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """Return `found` if it is a dictionary with the keys `needed`.

    Raises:
        UserError: it is not; the message ends with `fix`.
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
