"""A stage as a job on a cluster elsewhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.job_submission import JobStatus

from pipelines import doctor
from pipelines.cluster import job_package, jobs
from pipelines.core.params import load_params
from pipelines.storage.places import Folder
from tests.ray_cluster import RayCluster
from tests.servers import free_port
from unetpp.errors import UserError

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def outputs(tmp_path) -> dict[str, Path]:
    """What a stage has made: a folder and a file."""
    folder = tmp_path / "made" / "models"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(3000))
    (tmp_path / "made" / "metrics.json").write_text("{}")
    return {"out": folder, "metrics": tmp_path / "made" / "metrics.json"}


@pytest.fixture
def storage(tmp_path):
    return Folder(tmp_path / "shared")


def test_fetched_outputs_are_what_the_job_stored(outputs, storage, tmp_path):
    job_package.store(storage, "key", outputs)
    here = {"out": tmp_path / "here" / "models", "metrics": tmp_path / "here" / "metrics.json"}
    (tmp_path / "here" / "models").mkdir(parents=True)
    (tmp_path / "here" / "models" / "other").write_text("of another stage")
    job_package.fetch(storage, "key", here)
    assert (here["out"] / "model.safetensors").read_bytes() == (outputs["out"] / "model.safetensors").read_bytes()
    assert here["metrics"].read_text() == "{}"
    assert (here["out"] / "other").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "unsealed"])
def test_results_that_do_not_verify_change_nothing_here(outputs, storage, tmp_path, damage):
    job_package.store(storage, "key", outputs)
    archive = tmp_path / "shared" / "key.tar"
    content = bytearray(archive.read_bytes())
    if damage == "flip":
        content[1000] ^= 1
        archive.write_bytes(content)
    elif damage == "cut":
        archive.write_bytes(content[:-512])
    else:
        (archive if damage == "remove" else archive.with_suffix(".json")).unlink()
    with pytest.raises(UserError, match=r"key\.tar"):
        job_package.fetch(storage, "key", {"out": tmp_path / "here", "metrics": tmp_path / "metrics.json"})
    assert not (tmp_path / "here").exists()


def test_other_versions_than_those_of_the_lock_are_named():
    with pytest.raises(UserError, match=r"numpy .* \(expected 0\.1\), nothing none \(expected 1\)"):
        job_package.check_versions({"numpy": "0.1", "nothing": "1"})


@pytest.mark.parametrize(
    ("environment", "address", "expected"),
    [
        (None, None, None),
        (None, "http://head:8265", "http://head:8265"),
        ("http://other:8265/", "http://head:8265", "http://other:8265"),
        ("10.0.0.1:6379", "http://head:8265", None),  # as Ray sets it inside a job: there the stage runs
        ("auto", None, None),
    ],
)
def test_where_a_stage_is_sent(params, monkeypatch, environment, address, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    cluster = params.cluster.model_copy(update={"address": address})
    assert jobs.address_of(params.model_copy(update={"cluster": cluster})) == expected


def run(folder: Path, environment: dict, stage: str = "train", **options) -> subprocess.Popen:
    """The stage as dvc.yaml has it, in a project folder."""
    command = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"][stage]["cmd"].split()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, *command[1:]], cwd=folder, env=environment, **pipes, **options)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code, and all that it showed."""
    shown, _ = process.communicate()
    return process.returncode, shown


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with params.yaml, prepared data and an architecture, which sends its stages to a cluster."""
    folder = tmp_path_factory.mktemp("project")
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    values["ingest"]["synthetic"] |= {"num_images": 24, "size_px": 32}
    values["prepare"] |= {"size": 32, "near_duplicates": None}
    values["train"] |= {"epochs": 2, "num_workers": 2, "batch_size": 4, "warmup_epochs": 0}
    values["cluster"] |= {"storage": str(folder / "shared"), "cache": str(folder / "cache"), "python": sys.executable}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    (folder / "models" / "search").mkdir(parents=True)
    (folder / "models" / "search" / "architecture.yaml").write_text("widths: [4, 8]\n")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    for stage in ("ingest", "prepare"):
        code, shown = finish(run(folder, environment, stage))
        assert code == 0, shown
    return folder


@pytest.fixture(scope="module")
def cluster():
    cluster = RayCluster(num_nodes=2)
    yield cluster
    cluster.close()


@pytest.mark.slow  # the project runs two stages
def test_no_cluster_there_is_a_user_error_that_names_the_address(project, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    address = f"http://127.0.0.1:{free_port()}"
    code, shown = finish(run(folder, os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": address}))
    assert code == 2, shown
    assert f"{address}: no Ray cluster answers" in shown


def test_no_storage_is_a_user_error(params):
    with pytest.raises(UserError, match=r"cluster\.storage is null"):
        jobs.run_remotely("train", params, "http://head:8265", {"prepared": Path("data/prepared")})


class Client:
    """Of a cluster on which a job is and happens what is told."""

    def __init__(self, answers=(), logs=(), statuses=()):
        self.answers, self.logs, self.statuses = list(answers), list(logs), list(statuses)

    def submit_job(self, **_):
        if self.answers:
            raise RuntimeError(self.answers.pop(0))

    async def tail_job_logs(self, _job):
        for text in self.logs.pop(0):
            if isinstance(text, Exception):
                raise text
            yield text

    def get_job_status(self, _job):
        return JobStatus(self.statuses.pop(0))

    def get_job_info(self, _job):
        return SimpleNamespace(message="stopped by a person")


LATER = "Request failed with status code 500: No available agent to submit job, please try again later."


def test_a_cluster_without_an_agent_for_jobs_is_waited_for_in_one_line_and_then_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(jobs.time, "sleep", lambda _s: None)
    jobs._send(Client([LATER] * 3), "job-1", tmp_path, "python", "http://head:8265")
    assert capsys.readouterr().out.splitlines() == [
        "http://head:8265: waiting for the cluster's job agent",
        "job job-1 was submitted",
    ]
    monkeypatch.setattr(jobs, "AGENT_S", -1)
    with pytest.raises(UserError, match=r"head:8265: the cluster accepted no job .* port 52365.* --dashboard-agent-"):
        jobs._send(Client([LATER]), "job-1", tmp_path, "python", "http://head:8265")


def test_a_cut_log_goes_on_where_it_was_and_only_a_job_that_succeeded_is_done(monkeypatch, capsys):
    monkeypatch.setattr(jobs.time, "sleep", lambda _s: None)
    cut = OSError("the socket was closed")
    logs = [["one\n", cut], [cut], ["one\n", "two\n"], ["one\ntwo\nthree\n"]]
    jobs.follow(Client(logs=logs, statuses=["RUNNING", "SUCCEEDED"]), "job-1", "http://head:8265")
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
    for status in ("STOPPED", "FAILED"):
        with pytest.raises(UserError, match=rf"job-1 ended as {status} .*stopped by a person"):
            jobs.follow(Client(logs=[["one"]], statuses=[status]), "job-1", "http://head:8265")
    with pytest.raises(UserError, match=r"lost while job job-1 ran \(the socket was closed\)"):
        jobs.follow(Client(logs=[[cut]] * 99), "job-1", "http://head:8265")


@pytest.mark.ray
def test_a_stage_runs_as_a_job_on_two_nodes_with_a_token(project, cluster, monkeypatch):
    environment = cluster.env | {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": cluster.address}

    for address in (cluster.address, cluster.driver_address):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert doctor._ray() == doctor.Finding("ray", f"{address} answers, and asks for a token")

    # Without the token: refused, and named.
    code, shown = finish(run(project, environment | {"RAY_AUTH_MODE": "disabled"}))
    assert code == 2, shown
    assert "refuses this token" in shown

    # Ctrl-C stops the job there too.
    sent = run(project, environment)
    lines = []
    assert sent.stdout is not None
    for line in sent.stdout:
        if lines and "was submitted" in lines[-1]:  # its log begins
            os.killpg(sent.pid, signal.SIGINT)
        lines.append(line)
    sent.stdout.close()
    assert sent.wait() == 130, "".join(lines)
    assert "stopping job unetpp-train-" in "".join(lines)
    assert not (project / "models" / "train").exists()

    # `ray job stop` by somebody else: DVC does not take the stage for done.
    stage = {"cmd": yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["train"]["cmd"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage | {"outs": ["models/train"]}}}))
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    dvc = {"cwd": project, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], **dvc, check=True)
    repro = subprocess.Popen(["dvc", "repro"], **dvc)
    assert repro.stdout is not None
    for line in repro.stdout:
        lines.append(line)
        if sent := re.search(r"job (unetpp-train-\S+) was submitted", line):
            stop = ["ray", "job", "stop", "--no-wait", f"--address={cluster.address}", sent.group(1)]
            subprocess.run(stop, env=environment, check=True, capture_output=True)
    repro.stdout.close()
    assert repro.wait() != 0
    assert "ended as STOPPED" in "".join(lines)
    assert not (project / "dvc.lock").exists()
    assert not (project / "models" / "train").exists()

    # The same command sends it again, shows its log, and brings the results here.
    code, shown = finish(run(project, environment))
    assert code == 0, shown
    assert "-3 was submitted" in shown
    assert "epoch 2/2" in shown
    assert "fetched and verified" in shown
    assert json.loads((project / "reports" / "train" / "metrics.json").read_text())["epochs"] == 2
    assert (project / "models" / "train" / "model.safetensors").exists()

    # Once more: nothing is trained again.
    (project / "models" / "train" / "model.safetensors").unlink()
    code, shown = finish(run(project, environment))
    assert code == 0, shown
    assert "is already succeeded" in shown
    assert (project / "models" / "train" / "model.safetensors").exists()


@pytest.mark.slow
def test_project_params_load(project):
    assert load_params(project / "params.yaml").cluster.python == sys.executable
