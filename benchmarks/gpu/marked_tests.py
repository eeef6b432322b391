"""The part that runs the tests marked `gpu`, of those files that import with what is installed."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.scale import Scale

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"^(@pytest\.mark\.gpu|pytestmark = .*\bgpu\b)", re.MULTILINE)


def find_files(root: Path = ROOT) -> list[Path]:
    return sorted(path for path in (root / "tests").rglob("test_*.py") if MARK.search(path.read_text("utf-8")))


def run_tests(scale: Scale) -> Iterator[str]:  # noqa: ARG001 - a part
    """pytest's last line, and what failed or could not be imported."""
    if importlib.util.find_spec("pytest") is None:
        yield "Not run: pytest is not installed."
        return
    files = [str(path.relative_to(ROOT)) for path in find_files()]
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-W", "default"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = [line for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    yield f"`pytest -m gpu {' '.join(files)}`: {lines[-1].strip('= ') if lines else f'no answer, {done.returncode}'}."
    told = [line for line in lines if re.match(r"FAILED|ERROR|E +ModuleNotFoundError|SKIPPED", line)]
    yield from ("", *(f"- {line.removeprefix('E').strip()[:200]}" for line in dict.fromkeys(told[:12])))
