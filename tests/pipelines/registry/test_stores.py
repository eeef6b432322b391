"""Registering on real stores: PostgreSQL and S3 behind a server with log-in, many at once, and a store that breaks."""

import os
import sqlite3
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import boto3
import pytest
import requests
from werkzeug.security import generate_password_hash

from pipelines.registry import aliases, mlflow_store, read_back, runs
from tests.conftest import FORKED, start_server
from tests.pipelines.registry.family import NAME, register, write_stages
from tests.servers import Answer, Server, pass_on
from tests.stores import MlflowServer
from unetpp.errors import UserError

pytestmark = pytest.mark.slow
PASSWORD = "a long password"


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """Eight runs of a pipeline; processes begin with MLflow imported."""
    folder = tmp_path_factory.mktemp("at once")
    start_server(__name__)
    yield [write_stages(folder / f"run {seed}", seed) for seed in range(8)]
    start_server(*FORKED)


def _register(work) -> dict:
    """In a process of its own."""
    folder, name, uri = work
    os.chdir(folder)
    # What a clean process predicts is tested elsewhere; here it would cost a start of torch sixteen times.
    read_back.check_in_clean_process = lambda *_: {}
    mlflow_store.RETRY_AFTER_S = (1, 2)
    return register(folder, name, uri)


def register_at_once(folders: list[Path], name: str, uri: str) -> list[dict]:
    with get_context("forkserver").Pool(len(folders)) as pool:
        return pool.map(_register, [(folder, name, uri) for folder in folders], chunksize=1)


def check_eight_runs(found: list[dict], name: str, uri: str) -> None:
    """Each has two versions of its own, and all aliases are those of one of them."""
    client = mlflow_store.connect(uri)
    versions = {int(one.version): one for one in client.search_model_versions(f"name = '{name}'")}
    assert sorted(versions) == list(range(1, 17))
    assert sorted(number for one in found for number in one["versions"].values()) == sorted(versions)
    assert {one.tags["verified"] for one in versions.values()} == {"true"}
    for one in found:
        for depth, number in one["versions"].items():
            assert versions[number].run_id == one["run_id"]
            assert f"L{versions[number].tags['depth']}" == depth
    assert len({one["run_id"] for one in found}) == 8
    now = {alias: int(version) for alias, version in aliases.find_aliases(client, name).items()}
    last = max(found, key=lambda one: one["versions"]["L1"])
    # All of them score the same, so each was no worse than the one before it.
    assert now == last["versions"] | {"recommended": last["versions"]["L1"], "champion": last["versions"]["L1"]}
    stack = client.get_registered_model(name).tags["champion.stack"].split()
    assert stack == sorted((str(one["versions"]["L1"]) for one in found), key=int)
    assert "registering" not in client.get_registered_model(name).tags


def check_one_run(found: list[dict], name: str, uri: str) -> None:
    """The same run, registered eight times at once, is there once."""
    client = mlflow_store.connect(uri)
    assert {tuple(one["versions"].items()) for one in found} == {(("L1", 1), ("L2", 2))}
    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    assert len({one["run_id"] for one in found}) == 1
    where = found[0]["experiment_id"]
    assert len(client.search_logged_models([where], f"tags.run_id = '{found[0]['run_id']}'")) == 2
    assert aliases.find_aliases(client, name)["champion"] == "1"


def test_eight_registrations_at_once_in_a_file(at_once, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"  # nor does the database exist
    found = register_at_once(at_once, NAME, uri)
    check_eight_runs(found, NAME, uri)
    check_one_run(
        register_at_once([at_once[0]] * 8, "same", f"sqlite:///{tmp_path}/same.db"),
        "same",
        f"sqlite:///{tmp_path}/same.db",
    )


@pytest.mark.postgres
def test_eight_registrations_at_once_in_postgresql(at_once, postgres):
    uri = postgres.create("at-once")
    mlflow_store.connect(uri)
    check_eight_runs(register_at_once(at_once, NAME, uri), NAME, uri)


@pytest.mark.nightly  # in a file it is of every day
@pytest.mark.postgres
def test_the_same_run_eight_times_at_once_in_postgresql(at_once, postgres):
    uri = postgres.create("same")
    mlflow_store.connect(uri)
    check_one_run(register_at_once([at_once[0]] * 8, "same", uri), "same", uri)


@pytest.mark.postgres
@pytest.mark.usefixtures("aws")
def test_server_with_log_in_over_postgresql_and_s3_needs_its_address_alone(
    tmp_path, postgres, moto, monkeypatch, capsys
):
    with closing(boto3.client("s3", endpoint_url=moto)) as s3:
        s3.create_bucket(Bucket="mlflow")
        config = tmp_path / "basic_auth.ini"
        config.write_text(
            "[mlflow]\ndefault_permission = READ\n"
            f"database_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = admin\nadmin_password = {PASSWORD}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        server = MlflowServer(
            tmp_path / "server",
            mlflow_store.with_driver(postgres.create("server")),
            "s3://mlflow/artifacts",
            "--app-name",
            "basic-auth",
            "--allowed-hosts",
            "127.0.0.1:*",
            MLFLOW_S3_ENDPOINT_URL=moto,
            MLFLOW_AUTH_CONFIG_PATH=str(config),
            MLFLOW_FLASK_SERVER_SECRET_KEY="for the tests",
        )
        try:
            # A hash that takes no time: the server computes it at each of some hundred calls.
            cheap = generate_password_hash(PASSWORD, "pbkdf2:sha256:1")
            with closing(sqlite3.connect(tmp_path / "auth.db")) as users, users:
                users.execute("UPDATE users SET password_hash = ?", [cheap])
            # The client knows the address and who it is; of the database and the bucket it knows nothing.
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                monkeypatch.delenv(name)
            folder = write_stages(tmp_path / "a project")
            monkeypatch.chdir(folder)
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
            with pytest.raises(UserError, match="refuses this user"):
                register(folder, uri=server.url)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
            found = register(folder, uri=server.url)
            assert "read back and verified" in capsys.readouterr().out
            assert found["champion"] == 1
            assert PASSWORD not in str(found)
            keys = [one["Key"] for one in s3.list_objects_v2(Bucket="mlflow")["Contents"]]
            assert [key for key in keys if key.endswith("evidence/report.html")]
            # /health and /version answer to any name.
            asked = f"{server.url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=tests"
            strange = requests.get(asked, headers={"Host": "evil.example"}, auth=("admin", PASSWORD), timeout=10)
            assert strange.status_code == 403
        finally:
            server.close()


class Breaking:
    """Passes requests on to a server, and after `limit` of them breaks, in one of three ways."""

    def __init__(self, upstream: str):
        self._pass_on = pass_on(upstream)
        self.count, self.how = 0, ""
        self.limit: int | None = None

    def __call__(self, request, body) -> Answer:
        self.count += 1
        broken = self.limit is not None and self.count > self.limit
        if broken and self.how == "500":
            return Answer(500, {}, b"out of order")
        if broken and self.how == "hangs up":
            return Answer(200, {"Content-Length": "9"}, b"", cut=0)
        answer = self._pass_on(request, body)
        if broken and self.how == "answer lost":  # what was asked is done, and nobody hears of it
            return Answer(200, {"Content-Length": "9"}, b"", cut=0)
        return answer


@pytest.mark.parametrize(
    "breaks",
    [
        {0.1: "500", 0.85: "answer lost"},
        pytest.param({0.3: "500", 0.5: "hangs up", 0.7: "answer lost", 0.95: "500"}, marks=pytest.mark.nightly),
    ],
    ids=["two", "four"],
)
def test_server_that_breaks_in_the_middle_leaves_no_alias_and_a_later_run_completes(tmp_path, monkeypatch, breaks):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(mlflow_store, "RETRY_AFTER_S", ())
    monkeypatch.setattr(read_back, "check_in_clean_process", lambda *_: {})
    server = MlflowServer(tmp_path / "server", f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"))
    breaking = Breaking(server.url)
    proxy = Server(breaking)
    try:
        folder = write_stages(tmp_path / "a project")
        monkeypatch.chdir(folder)
        assert register(folder, "whole", proxy.url)["champion"] == 1
        total = breaking.count
        broken = 0
        for number, (share, breaking.how) in enumerate(breaks.items()):
            breaking.count, breaking.limit = 0, int(share * total)
            # A run of its own, so that each begins from nothing.
            project = write_stages(tmp_path / f"run {number}", number + 1)
            before = aliases.find_aliases(mlflow_store.connect(server.url), "whole")
            with pytest.raises(mlflow_store.StoreLostError, match="cannot be reached"):
                register(project, "whole", proxy.url)
            breaking.limit = None
            client = mlflow_store.connect(server.url)
            now = aliases.find_aliases(client, "whole")
            for alias, version in now.items():
                assert client.get_model_version("whole", version).tags.get("verified") == "true", alias
            broken += now == before
            # Its turn was not given back where the server was away; the tests do not wait for a minute.
            if "registering" in client.get_registered_model("whole").tags:
                client.delete_registered_model_tag("whole", "registering")
            found = register(project, "whole", proxy.url)
            now = {alias: int(version) for alias, version in aliases.find_aliases(client, "whole").items()}
            assert {alias: now[alias] for alias in ("L1", "L2")} == found["versions"]
            assert now["champion"] == found["versions"]["L1"]
            mine = client.search_model_versions(f"name = 'whole' and run_id = '{found['run_id']}'")
            assert len(mine) == 2
            fingerprint = client.get_run(found["run_id"]).data.tags["fingerprint"]
            same = client.search_runs([found["experiment_id"]], f"tags.fingerprint = '{fingerprint}'")
            assert [run.info.status for run in same] == ["FINISHED"]
        assert broken  # most broke before the aliases
    finally:
        proxy.close()
        server.close()


def test_server_that_fails_for_a_moment_is_tried_again(monkeypatch, capsys):
    """A failure that MLflow's own retries do not outlast, and the stage's do."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(mlflow_store, "RETRY_AFTER_S", (0.1,))
    tries = []

    def attempt():
        tries.append(1)
        if len(tries) == 1:
            runs.experiment_id(mlflow_store.connect(f"http://127.0.0.1:{9}"), "tests")
        return "done"

    assert mlflow_store.persistent("http://127.0.0.1:9", attempt) == "done"
    assert "trying again in 0.1 seconds" in capsys.readouterr().out
