"""An empty place of each kind, which the laws of files, runs and caches hold for."""

from pathlib import Path

import pytest

from pipelines.storage.places import Folder, Place, open_place
from tests.pipelines.storage.buckets import Bucket


@pytest.fixture
def s3_place(bucket: Bucket) -> Place:
    """In the bucket that the fixture `bucket` gives."""
    return open_place(f"s3://{bucket.name}/a prefix", bucket.params().s3)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return request.getfixturevalue("s3_place") if request.param == "s3" else Folder(tmp_path / "a shared folder")
