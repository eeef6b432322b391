"""`unetpp doctor`: what is installed, what the machine has, and what to do about what is wrong."""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

from pipelines.core.redaction import redacted
from unetpp.errors import UserError, to_install
from unetpp.threads import num_cores

PACKAGES = ("torch", "ray", "mlflow", "dvc", "albumentations", "numpy", "pyarrow", "opencv-python-headless", "boto3")


@dataclass(frozen=True)
class Finding:
    about: str
    found: str
    advice: str = ""  # what to do; "" if nothing is wrong


def _versions() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11, 4) <= sys.version_info[:3] < (3, 14)
    yield Finding("python", f"{version} ({sys.executable})", "" if supported else "use Python 3.11.4 to 3.13")
    lock = Path("requirements.lock")
    pinned = (
        dict(line.split("==", 1) for line in lock.read_text(errors="replace").split() if "==" in line)
        if lock.is_file()
        else {}
    )
    for name in PACKAGES:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "missing", f"make setup, or {to_install('pipelines')}")
            continue
        expected = pinned.get(name, found)
        agrees = found.split("+")[0] == expected
        yield Finding(name, found, "" if agrees else f"requirements.lock has {expected}: rm -rf .venv && make setup")


def _code() -> Iterator[Finding]:
    import unetpp

    here, used = Path("unetpp").absolute(), Path(unetpp.__file__).parent
    if here.is_dir() and here.resolve() != used.resolve():
        advice = "a project that was moved or copied needs its own environment: rm -rf .venv && make setup"
        yield Finding("code", f"unetpp of {used.parent} runs here", advice)


def _machine() -> Iterator[Finding]:
    import psutil
    import torch

    from unetpp.training.loop import choose_precision

    threads = torch.get_num_threads()
    yield Finding("processor", f"{num_cores()} cores, {threads} thread{'s' * (threads > 1)}, {platform.machine()}")
    gib = psutil.virtual_memory().available / 2**30
    yield _free("memory", gib, 4, "Ray and two workers need about 4 GiB: close other programs")
    gib = shutil.disk_usage(".").free / 2**30
    yield _free("disk here", gib, 2, "free some space; runs/ may be deleted when nothing trains")
    if Path("/dev/shm").is_dir():
        gib = shutil.disk_usage("/dev/shm").free / 2**30
        yield _free("/dev/shm", gib, 1, "in a container, start it with --shm-size=2g or more")
    precision = choose_precision("auto", torch.device("cpu"))
    yield Finding("precision on the processor", str(precision).removeprefix("torch."))
    if not torch.cuda.is_available():
        yield Finding("GPU", "none that torch can use")
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        yield Finding(f"GPU {index}", f"{facts.name}, {memory}; set train.use_gpu: true")


def _free(about: str, gib: float, needed: int, advice: str) -> Finding:
    return Finding(about, f"{gib:.1f} GiB free", "" if gib >= needed else advice)


def _project() -> Iterator[Finding]:
    from pipelines.core.params import load_params

    try:
        params = load_params()
    except UserError as error:
        yield Finding("params.yaml", "not usable", str(error))
        return
    yield Finding("params.yaml", "valid")
    cores = num_cores()
    asked = params.train.min_workers * params.train.cpus_per_worker
    if not os.environ.get("RAY_ADDRESS") and asked > cores:
        yield Finding("train.num_workers", f"{asked} cores asked for, {cores} here", "lower train.num_workers")
    yield from _dvc()
    yield _ray()
    yield _mlflow()


def _dvc() -> Iterator[Finding]:
    if not Path("dvc.yaml").is_file() or not Path(".dvc").is_dir():
        yield Finding("dvc", "no dvc.yaml and .dvc here", "run from the project's folder")
        return
    status = subprocess.run([sys.executable, "-P", "-m", "dvc", "status"], capture_output=True, text=True, check=False)
    if status.returncode:
        yield Finding("dvc", "dvc status fails", redacted((status.stderr or status.stdout).strip().splitlines()[-1]))
    else:
        lines = [line.strip() for line in status.stdout.splitlines() if line.strip()]
        current = "up to date" in status.stdout or lines == ["code:", "always changed"]
        yield Finding("dvc", "up to date" if current else "stages to run: dvc repro (dvc status says why)")
    yield _site_cache()
    if subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, check=False).returncode == 0:
        yield Finding("git", "has commits")
    else:
        yield Finding("git", "no repository or no commit", "dvc exp needs git init and a commit")


def _site_cache() -> Finding:
    """Where DVC keeps pickles of its own, see docs/security.md."""
    from pipelines.core.private import CACHE, DVC_DEFAULT, is_private

    command = [sys.executable, "-P", "-m", "dvc", "config", "core.site_cache_dir"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    place = Path(os.environ.get("DVC_SITE_CACHE_DIR") or configured or DVC_DEFAULT)
    advice = f"mkdir -p {CACHE} && chmod 700 {CACHE} && dvc config --local core.site_cache_dir {CACHE}/dvc"
    if is_private(place):
        return Finding("dvc's site cache", str(place))
    return Finding("dvc's site cache", f"{place}: other users may write code there that DVC runs", advice)


def _reaches(address: str, port: int) -> bool:
    parts = urlparse(address if "//" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or port), timeout=3):
            return True
    except OSError:
        return False


def _ray() -> Finding:
    from pipelines.cluster.ray_cluster import NO_ANSWER, START_IT, is_open, reaches

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("ray", "each stage starts its own on this machine (RAY_ADDRESS is not set)")
    if address.startswith("http"):
        unlocked = False
        try:
            with urlopen(f"{address.rstrip('/')}/api/jobs/", timeout=5):
                unlocked = True
        except HTTPError:  # 401
            pass
        except (OSError, HTTPException):
            return Finding("ray", f"{redacted(address)} {NO_ANSWER}", START_IT)
    elif not reaches(address, 3):
        return Finding("ray", f"{redacted(address)} {NO_ANSWER}", START_IT)
    else:
        unlocked = is_open(address)
    if unlocked:
        advice = "whoever reaches it runs code on it: start it with RAY_AUTH_MODE=token (docs/cluster.md)"
        return Finding("ray", f"{redacted(address)} answers without a token", advice)
    return Finding("ray", f"{redacted(address)} answers, and asks for a token")


def _mlflow() -> Finding:
    from pipelines.registry.lock import sqlite_path
    from pipelines.registry.mlflow_store import is_server, project_uri
    from pipelines.storage import artifact_paths

    uri = project_uri()
    if not is_server(uri):
        artifact_paths.follow(sqlite_path(uri))
        if lost := artifact_paths.missing(sqlite_path(uri)):
            advice = "copy the mlruns/ that belongs to mlflow.db here, or register them again"
            return Finding("mlflow", f"{redacted(uri)}: the artifacts of {', '.join(lost[:5])} are not there", advice)
        return Finding("mlflow", f"{redacted(uri)} (`unetpp mlflow` opens the page)")
    if _reaches(uri, 443 if uri.startswith("https") else 80):
        return Finding("mlflow", f"{redacted(uri)} answers")
    advice = "start that server, or unset MLFLOW_TRACKING_URI to use mlflow.db here"
    return Finding("mlflow", f"{redacted(uri)} does not answer", advice)


def doctor() -> int:
    """Print every finding, and what to do about each that is wrong.

    Returns:
        the exit code: 0 when nothing is wrong, 1 otherwise.
    """
    findings = [finding for group in (_versions, _code, _machine, _project) for finding in group()]
    width = max(len(one.about) for one in findings)
    for one in findings:
        print(f"{'--' if one.advice else 'ok'}  {one.about:<{width}}  {one.found}")
        if one.advice:
            print(f"{'':>{width + 6}}-> {one.advice}")
    wrong = sum(bool(one.advice) for one in findings)
    print(f"\n{wrong} problem{'s' * (wrong > 1)} found" if wrong else "\nno problems found")
    return 1 if wrong else 0
