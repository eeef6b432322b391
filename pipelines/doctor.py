"""`unetpp doctor`: what is installed, what the machine has, and what to do about what is wrong."""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

Finding = tuple[str, str, str]  # what it is about, what was found, what to do ("" when all is well)
PACKAGES = (
    "torch",
    "ray",
    "mlflow",
    "dvc",
    "albumentations",
    "numpy",
    "pyarrow",
    "opencv-python-headless",
    "boto3",
)


def _versions() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    legal = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield "python", f"{version} ({sys.executable})", "" if legal else "use Python 3.11 to 3.13"
    lock = Path("requirements.lock")
    pinned = dict(line.split("==", 1) for line in lock.read_text().split() if "==" in line) if lock.is_file() else {}
    for name in PACKAGES:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "missing", "make setup"
            continue
        expected = pinned.get(name, found)
        agrees = found.split("+")[0] == expected
        yield name, found, "" if agrees else f"requirements.lock has {expected}: rm -rf .venv && make setup"


def _machine() -> Iterator[Finding]:
    import psutil
    import torch

    from unetpp.training.loop import choose_precision

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield "processor", f"{cores} cores, {platform.machine()}", ""
    free = psutil.virtual_memory().available / 2**30
    yield (
        "memory",
        f"{free:.1f} GiB free",
        "" if free >= 4 else "Ray and two workers need about 4 GiB: close something",
    )
    disk = shutil.disk_usage(".").free / 2**30
    yield (
        "disk",
        f"{disk:.0f} GiB free here",
        "" if disk >= 2 else "free some space; runs/ may be deleted when nothing trains",
    )
    shm = shutil.disk_usage("/dev/shm").free / 2**30 if Path("/dev/shm").is_dir() else None
    if shm is not None:
        yield (
            "/dev/shm",
            f"{shm:.1f} GiB free",
            "" if shm >= 1 else "in a container, start it with --shm-size=2g or more",
        )
    precision = choose_precision("auto", torch.device("cpu"))
    yield "precision on the processor", str(precision).removeprefix("torch."), ""
    if not torch.cuda.is_available():
        yield "GPU", "none that torch can use", ""
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield (
            f"GPU {index}",
            f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB; set train.use_gpu: true",
            "",
        )


def _project() -> Iterator[Finding]:
    from pipelines.core.params import load_params
    from unetpp.errors import UserError

    try:
        params = load_params()
    except UserError as error:
        yield "params.yaml", "not usable", str(error)
        return
    yield "params.yaml", "legal", ""
    cores = os.cpu_count() or 1
    asked = params.train.min_workers * params.train.cpus_per_worker
    if not os.environ.get("RAY_ADDRESS") and asked > cores:
        yield "train.num_workers", f"{asked} cores asked for, {cores} here", "lower train.num_workers"
    yield from _dvc()
    yield from _ray()
    yield from _mlflow(params.registry)


def _dvc() -> Iterator[Finding]:
    if not Path("dvc.yaml").is_file() or not Path(".dvc").is_dir():
        yield "dvc", "no dvc.yaml and .dvc here", "run from the project's folder"
        return
    status = subprocess.run([sys.executable, "-m", "dvc", "status"], capture_output=True, text=True, check=False)
    if status.returncode:
        yield "dvc", "dvc status fails", (status.stderr or status.stdout).strip().splitlines()[-1]
    else:
        current = "up to date" in status.stdout
        yield "dvc", "up to date" if current else "stages to run: dvc repro (dvc status says why)", ""
    commits = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, check=False).returncode == 0
    yield (
        "git",
        "has commits" if commits else "no repository or no commit",
        "" if commits else "dvc exp needs git init and a commit",
    )


def _reaches(address: str, port: int) -> bool:
    parts = urlparse(address if "//" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or port), timeout=3):
            return True
    except OSError:
        return False


def _ray() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield "ray", "each stage starts its own on this machine (RAY_ADDRESS is not set)", ""
    elif _reaches(address, 6379):
        yield "ray", f"{address} answers", ""
    else:
        yield (
            "ray",
            f"{address} does not answer",
            "start that cluster, or unset RAY_ADDRESS to use this machine",
        )


def _mlflow(registry) -> Iterator[Finding]:
    from pipelines.registry.mlflow_store import shown, tracking_uri

    uri = tracking_uri(registry.tracking_uri)
    if not uri.startswith("http"):
        yield "mlflow", f"{shown(uri)} (`unetpp mlflow` opens the page)", ""
    elif _reaches(uri, 443 if uri.startswith("https") else 80):
        yield "mlflow", f"{shown(uri)} answers", ""
    else:
        yield (
            "mlflow",
            f"{shown(uri)} does not answer",
            "start that server, or unset MLFLOW_TRACKING_URI to use mlflow.db here",
        )


def doctor() -> int:
    """Print every finding, and what to do about each that is wrong.

    Returns:
        the exit code: 0 when nothing is wrong, 1 otherwise.
    """
    findings = [finding for group in (_versions, _machine, _project) for finding in group()]
    width = max(len(name) for name, _, _ in findings)
    for name, found, advice in findings:
        print(
            f"{'--' if advice else 'ok'}  {name:<{width}}  {found}"
            + (f"\n{'':>{width + 6}}-> {advice}" if advice else "")
        )
    wrong = sum(1 for _, _, advice in findings if advice)
    print(f"\n{wrong} thing(s) to put right" if wrong else "\nall is well")
    return 1 if wrong else 0
