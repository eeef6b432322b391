"""Which commit of the code runs, and whether files differ from it."""

import subprocess
from pathlib import Path

# Files that the pipeline itself rewrites do not count as changes of the code.
REWRITTEN = ("dvc.lock", "reports")


def git_commit(folder: Path) -> tuple[str, bool]:
    """The commit that is checked out, and whether files differ from it; ("none", False) without git or a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--", ".", *(f":!{path}" for path in REWRITTEN))
    except (OSError, subprocess.CalledProcessError):
        return "none", False
    return commit, bool(changes)


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()
