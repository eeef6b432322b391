"""What all tests share: the repository's params, the real images, and few threads."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = os.environ.get("UNETPP_SHARED_DATA")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on real images are reported as not run where there are none; in CI their absence is a failure."""
    present = SHARED is not None and Path(SHARED).is_dir()
    if present or os.environ.get("CI"):
        return
    reason = "not run: UNETPP_SHARED_DATA does not point to the folder of real images"
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images (DSB2018 and a sample of BBBC038)."""
    assert SHARED, "UNETPP_SHARED_DATA is not set"
    folder = Path(SHARED).resolve()
    assert folder.is_dir(), f"UNETPP_SHARED_DATA: no such folder: {folder}"
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture
def params():
    """params.yaml as it is shipped; change it by `model_copy`."""
    from pipelines.params import load_params

    return load_params(REPOSITORY / "params.yaml")
