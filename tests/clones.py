"""The working tree as a repository of its own, in which a test runs the pipeline as a user does."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from pipelines.core.outputs import MARKER
from tests.conftest import REPOSITORY
from unetpp.files import sha256

SMALL = {
    "ingest": {"synthetic": {"num_images": 40, "size_px": 64, "seed": 1, "masks": "instances"}},
    "prepare": {"size": 32},
    "search": {"widths": [[4, 6], [4, 6, 8]], "epochs": 2},
    "train": {"epochs": 4, "batch_size": 8, "warmup_epochs": 1},
    "evaluate": {"latency_rounds": 3, "throughput_batch": 2},
}


def git(folder: Path, *arguments: str) -> str:
    """A git command there, by an author of the tests' own; what it prints."""
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Clone:
    """A clone of the working tree, with its commands run by the environment that runs the tests."""

    def __init__(self, folder: Path, changes: dict[str, dict] | None = None):
        self.folder = folder
        names = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        for name in names.splitlines():
            if (REPOSITORY / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / name, folder / name)
        params = yaml.safe_load((folder / "params.yaml").read_text())
        for section, values in [*SMALL.items(), *(changes or {}).items()]:
            params[section] |= values
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "small params"]):
            git(folder, *command)

    def run(self, *command: str, expect: int = 0, **environment: str) -> str:
        """A command in the clone; what it prints."""
        done = self.finish(*command, **environment)
        assert done.returncode == expect, done.stdout
        return done.stdout

    def finish(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command in the clone, with whatever exit code."""
        scripts = str(Path(sys.executable).parent)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
        # The folder first, so that the stages run the clone's own code.
        env = kept | {"PATH": scripts + os.pathsep + os.environ["PATH"], "PYTHONPATH": str(self.folder)} | environment
        env = {"DVC_SITE_CACHE_DIR": str(self.folder.parent / "site cache")} | env  # as the set-up configures it
        return subprocess.run(
            command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
        )

    def unetpp(self, *words: str, expect: int = 0) -> str:
        """A command of `unetpp` in the clone's folder, by this process and its code; what it prints."""
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
            patch.delenv("RAY_ADDRESS", raising=False)
            patch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it to where it is connected: undone at the end
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["unetpp", *words])
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
        assert code == expect, said.getvalue()
        return said.getvalue()

    def experiment(self, name: str, *changes: str, until: str) -> str:
        """`dvc exp run` with these values of params.yaml, up to a stage."""
        return self.run("dvc", "exp", "run", "--name", name, *(word for one in changes for word in ("-S", one)), until)

    def hashes(self, *folders: str) -> dict[str, str]:
        """sha256 by name of all files in these folders, but for markers, which list also what was written before."""
        files = (path for folder in folders for path in (self.folder / folder).rglob("*") if path.is_file())
        paths = [path for path in files if path.name != MARKER]
        return {path.relative_to(self.folder).as_posix(): sha256(path) for path in paths}

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())
