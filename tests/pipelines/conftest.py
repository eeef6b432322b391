"""A small prepared data set and a project folder, for the stages that train."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from pipelines.core.params import load_params
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from tests.pipelines.dataset.made import make_fingerprint, make_samples
from tests.pipelines.storage.buckets import Bucket
from tests.ray_cluster import RayCluster
from tests.waiting import wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {
    "ingest": {
        "kind": "synthetic",
        "location": None,
        "synthetic": {"num_images": 40, "size_px": 64, "seed": 1, "masks": "instances"},
    },
    "prepare": {"size": 32},
    "search": {"widths": [[4, 6, 8]], "epochs": 2},
    "train": {"epochs": 4, "batch_size": 8, "warmup_epochs": 1},
    "evaluate": {"latency_rounds": 3, "throughput_batch": 2},
    "register": {"live": False},
}


class Project:
    """A folder with params.yaml, and the stages' commands run in it as DVC would."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment: dict[str, str] = {}  # beside this process's own
        self.params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
        self.set(SMALL)

    def set(self, changes: dict) -> None:
        """Change values of params.yaml: {"section": {"key": value}}."""
        for section, values in changes.items():
            self.params[section] |= values
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params))

    def start(self, stage: str, *arguments: str) -> subprocess.Popen:
        """`python -m pipelines.<stage> ...` in a session of its own; its output in <stage>.log."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= self.environment
        with open(self.folder / f"{stage}.log", "w") as log:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", f"pipelines.{stage}", *arguments],
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def log(self, stage: str) -> str:
        """What the stage has printed so far."""
        return (self.folder / f"{stage}.log").read_text()

    def wait_for(self, process: subprocess.Popen, stage: str, *patterns: str, timeout_s: int = 400) -> None:
        """Until a started stage has printed what all of these regular expressions find."""
        self.wait_until(
            process, stage, lambda log: all(re.search(pattern, log) for pattern in patterns), timeout_s=timeout_s
        )

    def wait_until(
        self, process: subprocess.Popen, stage: str, done: Callable[[str], object], timeout_s: float = 240
    ) -> None:
        """Until something holds of what a started stage has printed."""
        log = self.folder / f"{stage}.log"
        wait_for(lambda: done(log.read_text()), process, log, timeout_s)

    def run(self, stage: str, *arguments: str, expect: int = 0, timeout_s: int = 900) -> str:
        """Run a stage to its end and return what it printed."""
        process = self.start(stage, *arguments)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert code == expect, self.log(stage)
        return self.log(stage)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 synthetic images at 32x32, split."""
    folder = tmp_path_factory.mktemp("small data")
    project = Project(folder)
    params = load_params(project.folder / "params.yaml")
    ingest(params.ingest, folder / "raw")
    prepare(params.prepare, folder / "raw", folder / "prepared")
    return folder / "prepared"


@pytest.fixture(scope="session")
def fingerprints() -> dict[str, dict]:
    """Fingerprints of sets that differ in what is advised to them."""
    one_size = make_samples(200, size=96, sides=((160, 160),), grey=True)
    none = make_samples(40, typical_px=1)
    for column in ("sizes", "prepared_sizes", "classes"):
        none[column] = none[column] * 0  # text times nothing is no text
    for column in ("num_objects", "foreground_px", "foreground_share", "prepared_foreground_px"):
        none[column] = none[column] * 0
    return {
        "many sizes": make_fingerprint(make_samples(200)),
        "one size": make_fingerprint(one_size),
        "size null": make_fingerprint(make_samples(200, size=None), size=None),
        "large objects": make_fingerprint(make_samples(60, size=512, typical_px=300, sides=((2048, 2048),)), size=512),
        "rare and small": make_fingerprint(make_samples(60, size=None, typical_px=4, sides=((1024, 1024),)), size=None),
        "classes": make_fingerprint(make_samples(200, num_classes=4), num_classes=5),
        "no objects": make_fingerprint(none),
    }


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RayCluster]:
    """A Ray cluster of two nodes of one core each on this machine; idle, it would slow other modules' tests."""
    nodes = RayCluster(num_nodes=2, cpus=1)
    yield nodes
    nodes.close()


@pytest.fixture
def two_nodes(shared_cluster: RayCluster, project: Project) -> RayCluster:
    """The project's stages run on two nodes."""
    project.environment = shared_cluster.env | {"RAY_ADDRESS": shared_cluster.driver_address}
    return shared_cluster


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project folder with a space in its name."""
    folder = tmp_path / "a project"
    folder.mkdir()
    return Project(folder)


@pytest.fixture
def bucket(moto: str, aws: None) -> Iterator[Bucket]:  # noqa: ARG001 - for its effect
    """An empty bucket, with credentials for it."""
    made = Bucket(moto)
    yield made
    made.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A project whose family was registered once, at the second attempt (the first was interrupted at L2), and what
    versions.json holds; its registry is mlflow.db in the folder."""
    from pipelines.registry import mlflow_store, model_versions
    from tests.pipelines.registry.family import NAME, register, write_engines, write_lock, write_stages

    folder = write_stages(tmp_path_factory.mktemp("home") / "a project")
    write_engines(folder)
    upload_model = model_versions.upload_model
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return upload_model(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it to where it is connected: undone at the end
        patch.chdir(folder)
        write_lock(folder)
        with patch.context() as first:
            first.setattr(model_versions, "upload_model", interrupted)
            with pytest.raises(KeyboardInterrupt):
                register(folder)
        client = mlflow_store.connect(f"sqlite:///{folder}/mlflow.db")
        assert client.get_registered_model(NAME).aliases == {}
        assert [run.info.status for run in client.search_runs(["1"], "tags.model_name = 'nuclei'")] == ["FAILED"]
        return folder, register(folder)
