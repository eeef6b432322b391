"""Folders that no other user of the machine may enter: they hold what is unpickled, or data and names of others."""

import os
from contextlib import suppress
from pathlib import Path

# Of this user on this machine: data of other runs (`pipelines.storage.node_cache`), and what DVC keeps.
CACHE = Path("~/.cache/unetpp")
DVC_DEFAULT = Path("/var/tmp/dvc")  # which DVC makes for all users to write in, and fills with pickles


def make_private(folder: Path) -> Path:
    """The folder, made where it is missing, and closed to other users where it is ours."""
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # another user's, or on a disk without modes
        folder.chmod(folder.stat().st_mode & 0o700)
    return folder


def is_private(path: Path) -> bool:
    """Whether no other user gets to a path, which need not be there yet."""
    return any(one.exists() and not one.stat().st_mode & 0o077 for one in (path, *path.absolute().parents))


def dvc_environment() -> dict[str, str]:
    """For a process of DVC's: where it keeps its site cache, unless the user has said it."""
    return {"DVC_SITE_CACHE_DIR": os.environ.get("DVC_SITE_CACHE_DIR") or str(make_private(CACHE) / "dvc")}
