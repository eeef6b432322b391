"""A Ray cluster that somebody else started: it disturbs no training of this machine, and runs the stage as a job."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.registry import mlflow_store, runs
from tests.conftest import REPOSITORY
from tests.servers import free_port
from tests.waiting import wait_for
from unetpp.models.model_file import load_model

pytestmark = pytest.mark.ray
SCRIPTS = Path(sys.executable).parent


@contextmanager
def head_node(folder: str) -> Iterator[dict[str, str]]:
    """A head node with its dashboard, as `ray start` makes it; yields the environment in which a job finds it.

    `folder` is what /tmp is for a user: Ray writes into it which cluster was started last.
    """
    dashboard = free_port()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}
    environment = kept | quiet | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    command = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--port={free_port()}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    command += [f"--ray-client-server-port={free_port()}"]
    log = Path(folder) / "head.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        # Written last, by the process that says "Ray runtime started" some time before.
        wait_for((Path(folder) / "ray" / "ray_current_cluster").is_file, process, log)
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        process.terminate()  # with --block, the processes of the node end with it
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def short_folder() -> Iterator[str]:
    """For Ray's sockets, whose path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


def arguments(prepared: Path, out: Path) -> list[str]:
    """Absolute paths: a job runs in a copy of the working directory, which is gone afterwards."""
    (out / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    named = {"architecture": "architecture.yaml", "runs": "runs", "out": "models/train", "reports": "reports/train"}
    return ["--prepared", str(prepared), *(f"--{name}={out / path}" for name, path in named.items())]


def test_a_cluster_that_somebody_starts_ends_no_workers_whose_epochs_reach_mlflow_and_takes_a_job(
    project, prepared, short_folder, tmp_path
):
    uri = f"sqlite:///{project.folder}/mlflow.db"
    client = mlflow_store.connect(uri)
    # Ray Train's helper asked the cluster that was started last about the controller, and heard that it was dead.
    project.environment["RAY_TMPDIR"] = short_folder
    project.set({"train": {"epochs": 500, "num_workers": 2}, "register": {"live": True, "tracking_uri": uri}})
    training = project.start("train", *arguments(prepared, project.folder))

    def logged() -> list[int]:
        found = client.search_runs([runs.experiment_id(client, "unetpp")])
        return [one.step for run in found for one in client.get_metric_history(run.info.run_id, "val_iou/L2")]

    wait_for(logged, training, project.folder / "train.log", timeout_s=240)
    with head_node(short_folder) as environment:
        reached = project.log("train").count("epoch ")
        # An epoch takes half a second and more, and the helper asks every second.
        project.wait_for(training, "train", f"epoch {reached + 10}/500")
        training.send_signal(signal.SIGINT)
        assert training.wait(60) == 130
        printed = project.log("train")
        assert "replaced" not in printed
        assert "resuming after" not in printed
        assert "Traceback" not in printed
        steps = logged()
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= reached + 10
        (run,) = client.search_runs([runs.experiment_id(client, "unetpp")])
        assert "images_per_s" in run.data.metrics
        assert not [name for name in run.data.metrics if "best_" in name]

        # What docs/cluster.md says, from a folder that holds the code, and on a cluster whose interpreter may lie in a
        # folder with a space in its name.
        project.set({"train": {"epochs": 4}, "register": {"live": False, "tracking_uri": None}})
        for name in ("pipelines", "unetpp"):
            (project.folder / name).symlink_to(REPOSITORY / name)
        command = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env-json", '{"py_executable": "python"}']
        command += ["--", "python", "-m", "pipelines.train", *arguments(prepared, tmp_path)]
        done = subprocess.run(
            command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 4/4" in done.stdout
    assert "succeeded" in done.stdout
    assert load_model(tmp_path / "models/train").network.widths == (4, 6, 8)
