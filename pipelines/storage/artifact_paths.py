"""Artifacts of a store in a local file are next to it, also after the project was moved or copied.

MLflow writes the absolute path of each artifact folder into its database. Here `mlflow.db` and `mlruns/` belong
together: when the database is opened, paths to its former location are updated to its present one, in one
transaction and after a backup, so that a moved project loads its models and a copy never writes into its original.
"""

import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from pipelines.core.files import replacing
from unetpp.errors import UserError

ROOT = "mlruns"  # where MLflow keeps the artifacts of a local store by default
# Every column with such a path (MLflow 3.17).
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def follow(path: Path | None, file: Path | None = None) -> None:
    """Correct the paths of a store, and say so if artifacts were moved.

    Args:
        path: its database; None for a server, which manages its own.
        file: the temporary location of the database, if it differs.

    Raises:
        UserError: its paths are wrong and it cannot be written.
    """
    file = file or path
    if path is None or file is None or not file.is_file():
        return
    home = path.absolute().parent / ROOT
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as database:
            changes = _changes(database, home, path.name)
    except sqlite3.DatabaseError:
        return  # not a store, or not yet: MLflow reports it
    if not changes:
        return
    backup = path.with_name(f"{path.name}.before-move")
    kept = [old for *_, old, new in changes if Path(new).exists() or Path(old).exists()]
    moved = sorted({old.rpartition(f"/{ROOT}/")[0] for old in kept})
    try:
        with closing(sqlite3.connect(file, timeout=60)) as database:
            if moved:
                with replacing(backup) as partial:
                    with closing(sqlite3.connect(partial)) as copy:
                        database.backup(copy)
                    shutil.copymode(file, partial)
            with database:
                for table, column, old, new in changes:
                    database.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, old))
    except (sqlite3.OperationalError, OSError) as error:
        raise UserError(
            f"{path}: its artifacts were in {changes[0][2]} and belong in {home} now, but this database cannot "
            f"be written ({error}): run a command as its owner once"
        ) from None
    if moved:
        print(
            f"{path}: this project was {', '.join(moved)} before; its registry now has its present paths (backup: "
            f"{backup.name})",
            file=sys.stderr,
        )


def missing(path: Path | None) -> list[str]:
    """The registered versions in a database whose artifacts are missing, as NAME/VERSION."""
    if path is None or not path.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as database:
            query = "SELECT name, version, storage_location FROM model_versions WHERE current_stage NOT LIKE 'Deleted%'"
            found = database.execute(query).fetchall()
    except sqlite3.DatabaseError:
        return []
    return [f"{name}/{version}" for name, version, at in found if at and at.startswith("/") and not Path(at).is_dir()]


def _changes(database: sqlite3.Connection, home: Path, name: str) -> list[tuple[str, str, str, str]]:
    """(table, column, old, new) of each path that is not below `home` and should be."""
    found = []
    for table, column in COLUMNS:
        for (old,) in database.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE '/%'").fetchall():
            root, _, rest = old.rpartition(f"/{ROOT}/")
            new = str(home / rest)
            if not rest or old == new or not (root or old.startswith(f"/{ROOT}/")):
                continue
            # Keep it if artifacts are elsewhere on purpose: they are there and not here, and no store is next to them.
            if Path(new).exists() or not Path(old).exists() or (Path(root or "/") / name).is_file():
                found.append((table, column, old, new))
    return found
