"""A Ray cluster that somebody else started: the same commands, connected or submitted as a job."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.pipelines.conftest import REPOSITORY
from unetpp.inference.model_file import load_model

pytestmark = pytest.mark.ray
SCRIPTS = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def head_node(folder: str) -> Iterator[dict[str, str]]:
    """A head node with its dashboard, as `ray start` makes it; yields the environment that finds it.

    `folder` is what /tmp is for a user: Ray writes into it which cluster was started last.
    """
    port, dashboard, agent, client = free_ports(4)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}
    environment = kept | quiet | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    command = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}"]
    log = Path(folder) / "head.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        give_up = time.monotonic() + 120
        # Written last, by the process that says "Ray runtime started" some time before.
        while not (Path(folder) / "ray" / "ray_current_cluster").is_file():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.5)
        yield environment | {
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
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


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder, head_node(folder) as environment:
        yield environment


def arguments(prepared: Path, out: Path) -> list[str]:
    """Absolute paths: a job runs in a copy of the working directory, which is gone afterwards."""
    (out / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    named = {"architecture": "architecture.yaml", "runs": "runs", "out": "models/train", "reports": "reports/train"}
    return ["--prepared", str(prepared), *(f"--{name}={out / path}" for name, path in named.items())]


def test_a_cluster_that_somebody_starts_on_the_machine_does_not_end_the_workers(project, prepared, short_folder):
    # Ray Train's helper asked the one that was started last about the controller, and heard that it was dead.
    project.environment["RAY_TMPDIR"] = short_folder
    project.set({"train": {"epochs": 500, "num_workers": 2}})
    training = project.start("train", *arguments(prepared, project.folder))

    project.wait_for(training, "train", "epoch 2/500")
    with head_node(short_folder):
        reached = project.log("train").count("epoch ")
        time.sleep(5)  # the helper asks every second
        project.wait_for(training, "train", f"epoch {reached + 5}/500")
        training.send_signal(signal.SIGINT)
        assert training.wait(60) == 130
    printed = project.log("train")
    assert "replaced" not in printed
    assert "resumes after" not in printed
    assert "Traceback" not in printed


def test_job_submitted_from_a_working_directory_trains(head, project, prepared, tmp_path):
    # What README says, from a folder that holds the code, and on a cluster whose interpreter may lie in a
    # folder with a space in its name.
    for name in ("pipelines", "unetpp"):
        (project.folder / name).symlink_to(REPOSITORY / name)
    command = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env-json", '{"py_executable": "python"}']
    command += ["--", "python", "-m", "pipelines.train", *arguments(prepared, tmp_path)]
    environment = {key: value for key, value in head.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 4/4" in done.stdout
    assert "succeeded" in done.stdout
    assert load_model(tmp_path / "models/train").network.widths == (4, 6, 8)


def test_stage_connects_to_the_cluster_that_the_environment_names(head, project, prepared):
    command = [sys.executable, "-m", "pipelines.train", *arguments(prepared, project.folder)]
    done = subprocess.run(
        command, cwd=project.folder, env=head, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 4/4" in done.stdout
    assert load_model(project.folder / "models/train").network.widths == (4, 6, 8)
