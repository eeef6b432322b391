"""The wheel of the working tree, and environments of its own in which it is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.conftest import REPOSITORY

FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")
SHIPPED = ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/plots")


class Installed:
    """An environment with the wheel and what it requires, at the versions of the lock.

    Args:
        shared: the packages are those of the environment that runs the tests, and nothing is installed beside the
            wheel; with them come `unetpp[pipelines]`.
    """

    def __init__(self, folder: Path, shared: bool = False):
        uv = str(Path(sys.executable).with_name("uv"))
        source, self.empty = folder / "source", folder / "empty"
        self.empty.mkdir()
        source.mkdir()
        for name in (*FILES, *SHIPPED, "unetpp", "pipelines"):
            (source / name).parent.mkdir(exist_ok=True)
            if (REPOSITORY / name).is_dir():
                shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(REPOSITORY / name, source / name)
        asked = subprocess.run([sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True)
        links = os.environ.get("PIP_FIND_LINKS") or asked.stdout.decode().strip()
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment = {"UV_FIND_LINKS": links} | self.environment if links else self.environment

        def run(*command: str) -> None:
            done = subprocess.run([uv, *command], env=environment, capture_output=True, text=True, cwd=source)
            assert done.returncode == 0, done.stderr

        run("build", "--out-dir", str(folder))  # the wheel by way of the sdist, as `make dist`
        (self.wheel,) = folder.glob("*.whl")
        run("venv", "--python", sys.executable, str(folder / "venv"))
        self.bin = folder / "venv/bin"
        lock = ["--no-deps"] if shared else ["--constraint", str(REPOSITORY / "requirements.lock")]
        run("pip", "install", "--python", str(self.bin / "python"), *lock, str(self.wheel))
        if shared:
            (packages,) = (folder / "venv/lib").glob("python*/site-packages")
            (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
            code = "import sys\nfrom dvc.cli import main\nsys.exit(main())\n"
            (self.bin / "dvc").write_text(f"#!{self.bin / 'python'}\n{code}")
            (self.bin / "dvc").chmod(0o755)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A program of the environment, run in an empty folder."""
        return subprocess.run(
            [str(self.bin / program), *arguments], cwd=self.empty, env=self.environment, capture_output=True, text=True
        )
