"""What `--data` names: a folder, an archive, an address or a bucket, as section ingest has it."""

import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.storage.sources import SUFFIXES
from unetpp.errors import UserError

OUTPUTS = ("data", "models", "reports", "runs")  # folders of a project into which its stages write


@dataclass(frozen=True)
class Data:
    """As in params.yaml, and the path by which this process finds it; None for data to be fetched first."""

    kind: str
    location: str
    folder: Path | None


def find_data(data: str, project: Path) -> Data:
    """The user's name for the data, seen from the project's folder: a relative path stays relative.

    Raises:
        UserError: nothing is there, or the project would be inside its own data.
    """
    scheme = data.partition("://")[0].lower() if "://" in data else ""
    if scheme in ("s3", "http", "https"):
        return Data("s3" if scheme == "s3" else "http", data, None)
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(f"{data}: no such file or folder; expected images with masks: a folder, a zip or tar, s3://...")
    within = project.resolve()
    location = data if path.is_absolute() else os.path.relpath(path.absolute(), within)
    if path.is_dir():
        held = [name for name in OUTPUTS if (within / name).is_relative_to(path.resolve())]
        if held:
            raise UserError(
                f"{data}: the project {project} would write its {held[0]}/ into this folder, which it reads: choose a "
                "project folder next to the data, or move the data"
            )
        return Data("folder", location, path)
    for kind, suffixes in SUFFIXES.items():
        if path.name.lower().endswith(suffixes):
            return Data(kind, location, None)
    raise UserError(f"{data}: found a file; expected a folder, or one of {', '.join(sum(SUFFIXES.values(), ()))}")
