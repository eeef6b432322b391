"""Where the MLflow store is, what is said when it is away, and loading by URI."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.core.redaction import redacted
from pipelines.registry import mlflow_store
from pipelines.registry.load import load_registered
from tests.waiting import wait_for
from unetpp.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty folder with a space in its name as the project, and no setting from outside."""
    folder = tmp_path / "a project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_params_win_over_environment_over_the_folder(store, monkeypatch):
    assert mlflow_store.tracking_uri() == store
    assert mlflow_store.tracking_uri().startswith("sqlite:////")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    assert mlflow_store.tracking_uri() == "http://there:5000"
    assert mlflow_store.tracking_uri("http://here:5000") == "http://here:5000"


@pytest.mark.parametrize("kind", ["http://127.0.0.1:{}", "postgresql://me:secret@127.0.0.1:{}/x"])
def test_unreachable_store_is_a_user_error_that_names_it(kind, closed_port):
    uri = kind.format(closed_port)
    with pytest.raises(UserError, match="rerun the command") as error:
        mlflow_store.connect(uri)
    assert redacted(uri) in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.slow
def test_store_whose_making_was_killed_is_made_anew(store):
    """MLflow itself cannot open one that was killed between two of its migrations."""
    file, partial = (Path(store.removeprefix("sqlite:///") + end) for end in ("", ".partial"))
    code = f"from pipelines.registry import mlflow_store; mlflow_store.connect({store!r})"
    making = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for(lambda: partial.is_file() and partial.stat().st_size >= 150_000, making)
    making.kill()
    making.wait()
    assert not file.exists()
    assert mlflow_store.connect(store).get_experiment("0").name == "Default"
    assert file.exists()
    assert not partial.exists()


def test_what_is_no_store_is_a_user_error(tmp_path):
    (tmp_path / "text.db").write_text("this is no database, it is a text file of some length")
    with pytest.raises(UserError, match=r"text\.db"):
        mlflow_store.connect(f"sqlite:///{tmp_path}/text.db")


def test_other_errors_pass_unchanged():
    with pytest.raises(KeyError), mlflow_store.explained("http://there"):
        raise KeyError("a bug")


@pytest.mark.parametrize("uri", ["models:/", "models:/name", "models:/name@", "models:/@L1"])
def test_malformed_model_uri_is_a_user_error(uri):
    with pytest.raises(UserError, match="expected models:/NAME@ALIAS"):
        load_registered(uri)


def test_empty_registry_says_how_to_fill_it(store):
    with pytest.raises(UserError, match=r"mlflow\.db: found no MLflow store; `dvc repro register` creates it"):
        load_registered("models:/nuclei@L1")
    assert not list(Path.cwd().iterdir())  # nor is an empty one made
    mlflow_store.connect(store)
    with pytest.raises(UserError, match="which has no models; `dvc repro register` registers one"):
        load_registered("models:/nuclei@L1")


def test_page_on_a_taken_port_is_a_user_error_with_the_fix(store):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use.*--port {port + 1}"):
            mlflow_store.serve_page(port, store)


def test_page_becomes_the_server_of_the_same_store(store, closed_port, monkeypatch, capsys):
    started = {}
    monkeypatch.setattr(mlflow_store.os, "execve", lambda _file, command, env: started.update(command=command, env=env))
    mlflow_store.serve_page(closed_port, store, "nuclei")
    assert started["command"][1:5] == ["-P", "-m", "mlflow", "server"]
    assert started["command"][started["command"].index("--host") + 1] == "127.0.0.1"
    assert started["env"]["MLFLOW_BACKEND_STORE_URI"] == store
    assert Path(store.removeprefix("sqlite:///")).stat().st_mode & 0o777 == 0o600
    assert started["env"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert started["env"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert f"http://127.0.0.1:{closed_port}/#/models/nuclei" in capsys.readouterr().out


def test_page_of_a_server_is_its_own(capsys):
    mlflow_store.serve_page(5000, "http://there:5000/", "nuclei")
    assert "http://there:5000/#/models/nuclei" in capsys.readouterr().out
