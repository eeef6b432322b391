"""Folders closed to other users of the machine: they hold what is unpickled, or private data and names."""

import os
from contextlib import suppress
from pathlib import Path

# Of this user on this machine: data of other runs (`pipelines.storage.node_cache`), and what DVC keeps.
CACHE = Path("~/.cache/unetpp")
DVC_DEFAULT = Path("/var/tmp/dvc")  # which DVC makes for all users to write in, and fills with pickles


def make_private(folder: Path) -> Path:
    """The folder, created if missing, and closed to other users if it is ours."""
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # another user's, or on a disk without modes
        folder.chmod(folder.stat().st_mode & 0o700)
    return folder


def is_private(path: Path) -> bool:
    """Whether other users have no access to a path, which need not exist yet."""
    return any(one.exists() and not one.stat().st_mode & 0o077 for one in (path, *path.absolute().parents))


def dvc_environment() -> dict[str, str]:
    """Environment of a DVC process: where its site cache is, unless the user has set it."""
    return {"DVC_SITE_CACHE_DIR": os.environ.get("DVC_SITE_CACHE_DIR") or str(make_private(CACHE) / "dvc")}
