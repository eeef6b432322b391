"""Git and DVC of a project: initialised if missing, else left alone."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from pipelines.core.private import dvc_environment
from pipelines.project.template import shipped
from unetpp.errors import UserError


def set_up(folder: Path) -> list[str]:
    """Make the folder a repository of git's and DVC's, without calls home; returns what was made."""
    made = []
    if _git(folder, "rev-parse", "--is-inside-work-tree").returncode:
        _done(_git(folder, "init", "--quiet"))
        made.append("a git repository")
    config = folder / ".dvc/config"
    if not config.is_file():
        subdir = [] if _top(folder) == folder.resolve() else ["--subdir"]
        rest = ["--force"] if config.parent.exists() else []  # left by an interrupted one
        _done(_dvc(folder, "init", "--quiet", *subdir, *rest))
        made.append("a DVC repository")
    if "[core]" not in config.read_text(encoding="utf-8"):
        with config.open("a", encoding="utf-8") as file:
            file.write(shipped(".dvc/config").replace("[core]\n", "[core]\n    autostage = true\n"))
    local = folder / ".dvc/config.local"
    if not local.exists() and "DVC_SITE_CACHE_DIR" not in os.environ:
        _done(_dvc(folder, "config", "--local", "core.site_cache_dir", dvc_environment()["DVC_SITE_CACHE_DIR"]))
    return made


def commit(folder: Path, names: Iterable[str]) -> None:
    """Make the first commit of a repository that has none, if git knows the user."""
    if _top(folder) == folder.resolve() and not _has_commit(folder) and _knows_user(folder):
        paths = [name for name in names if (folder / name).exists()]
        _done(_git(folder, "add", "--", *paths))
        _git(folder, "commit", "--quiet", "--message", "A project by unetpp init", "--", *paths)


def lacking(folder: Path) -> list[str]:
    """The commands that `dvc exp run` needs first: it keeps experiments as commits on top of one of yours."""
    user = [] if _knows_user(folder) else ["git config user.name NAME", "git config user.email ADDRESS"]
    committed = _has_commit(folder) and not _git(folder, "cat-file", "-e", "HEAD:./dvc.yaml").returncode
    return user + ([] if committed else ["git add .", "git commit -m project"])


def _has_commit(folder: Path) -> bool:
    return not _git(folder, "rev-parse", "--quiet", "--verify", "HEAD").returncode


def _knows_user(folder: Path) -> bool:
    return not _git(folder, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT").returncode


def _top(folder: Path) -> Path:
    return Path(_done(_git(folder, "rev-parse", "--show-toplevel")).strip()).resolve()


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed, and DVC needs it for a project's history: install git") from None


def _dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    environment = os.environ | dvc_environment()
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _done(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"{' '.join(done.args)}: {said}")
    return done.stdout
