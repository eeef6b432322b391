"""What all tests share: the repository's params, the real images, and few threads."""

import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.browser import HELP, Browser, find_chromium
from tests.servers import Moto
from tests.small_disk import SmallDisk
from tests.stores import HELP as NO_POSTGRES
from tests.stores import Postgres, find_postgres

# Two processes of tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ["UNETPP_VERBOSE"] = "1"  # tests wait for an epoch, and look for what is told of each trial
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as unetpp.threads has it, for tests that import torch alone

# A shell starts what runs in the background with Ctrl-C ignored, which the processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = os.environ.get("UNETPP_SHARED_DATA")
FORKED = ("pipelines.storage.synthetic", "pipelines.dataset.loading", "unetpp.data.loader")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers, and before xdist reads groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests share a process of `pytest --dist loadgroup`, and which are not run.

    Two Rays on one machine disturb each other, so all tests that start one are a group; other slow tests, those with a
    server among them, are one by module, whose servers they share. Tests that lack real images or a browser are
    reported as not run; in CI their absence is a failure.
    """
    for item in items:
        if {"moto", "postgres"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
    missing = {}
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            missing["gpu"] = "torch finds no CUDA device"  # in CI too, which has none
    if os.environ.get("CI"):
        _mark_skipped(items, missing)
        return
    if SHARED is None or not Path(SHARED).is_dir():
        missing["shared_data"] = "UNETPP_SHARED_DATA does not point to the folder of real images"
    if not find_chromium():
        missing["browser"] = HELP
    if not find_postgres():
        missing["postgres"] = NO_POSTGRES
    _mark_skipped(items, missing)


def _mark_skipped(items: list[pytest.Item], missing: dict[str, str]) -> None:
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"not run: {reason}"))


def start_server(*modules: str) -> None:
    """The server that forks this process's processes, anew, with these modules imported."""
    forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]
    forkserver.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


@pytest.fixture(scope="session", autouse=True)
def _server() -> None:
    """Processes of ingest, prepare and loaders start in milliseconds, whichever of them a test needs first.

    There is one server a process, with the modules that were wanted when it began: where that was for ingest, each
    process of prepare would import torch.
    """
    start_server(*FORKED)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images (DSB2018 and a sample of BBBC038)."""
    assert SHARED, "UNETPP_SHARED_DATA is not set"
    folder = Path(SHARED).resolve()
    assert folder.is_dir(), f"UNETPP_SHARED_DATA: no such folder: {folder}"
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A page of a headless Chromium, one for all tests marked `browser`."""
    with Browser() as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 64 MiB."""
    disk = SmallDisk(tmp_path / "a small disk", 64)
    yield disk
    disk.close()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture
def params():
    """params.yaml as it is shipped; change it by `model_copy`."""
    from pipelines.core.params import load_params

    return load_params(REPOSITORY / "params.yaml")


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 store."""
    server = Moto(tmp_path_factory.mktemp("moto") / "moto.log")
    yield server.url
    server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of its own, for tests marked `postgres`."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials that moto takes, and nothing of this machine's own."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no credentials"),
    }.items():
        monkeypatch.setenv(name, value)
