"""A training in MLflow while it runs, whatever happens to MLflow or to the training."""

import io
import os
import signal
import threading
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from pipelines.registry import live_log, mlflow_store, run_log, runs
from pipelines.registry.live_log import Sender, logged_live, read_unlogged
from pipelines.registry.run_log import Inputs
from tests.pipelines.registry.family import write_csv
from tests.pipelines.training.small import ARGUMENTS
from tests.servers import free_port
from tests.stores import MlflowServer
from tests.waiting import wait_for

NAMES = ("val_iou/L1", "val_iou/L2", "val_loss/L1", "val_loss/L2", "train_loss", "learning_rate", "images_per_s")


def row_of(epoch: int) -> dict:
    depths = {f"val_{what}_L{depth}": epoch / 10 + depth / 100 for what in ("iou", "loss") for depth in (1, 2)}
    return {"epoch": epoch, "train_loss": 1 / epoch, "learning_rate": 0.1, "images_per_s": 7.0 * epoch} | depths


class Store:
    """Takes rows while it is up."""

    def __init__(self):
        self.up, self.rows, self.status, self.refused = True, [], None, 0

    def __call__(self, rows, status):
        if not self.up:
            self.refused += 1
            raise ConnectionError("away")
        self.rows += [row for row, _ in rows]
        self.status = status


@pytest.mark.parametrize("away", [None, 0, 1, 2], ids=["never", "at the start", "in the middle", "at the end"])
def test_every_row_is_sent_once_and_in_order_or_given_back(away, capfd):
    store = Store()
    sender = Sender(store, retry_s=0.02)
    for part in range(3):
        store.up = part != away
        for epoch in range(10 * part + 1, 10 * part + 11):
            sender.add({"epoch": epoch})
        wait_for(lambda part=part: len(store.rows) == 10 * (part + 1) if store.up else store.refused)
    left = sender.close("FINISHED", 60 if store.up else 0.5)
    assert [row["epoch"] for row in store.rows] + [row["epoch"] for row, _ in left] == list(range(1, 31))
    assert bool(left) == (away == 2)
    assert store.status == (None if left else "FINISHED")
    said = capfd.readouterr().err
    assert said.count("cannot log to MLflow, retrying: ConnectionError: away") == (away is not None)
    assert said.count("logging to MLflow again") == (away in (0, 1))


def test_training_never_waits_for_a_store_that_hangs():
    hangs = threading.Event()  # set at the end: whoever waited for the store would wait forever

    def send(*_: object) -> None:
        hangs.wait()

    sender = Sender(send)
    for epoch in range(1, 100):
        sender.add({"epoch": epoch})
    assert len(sender.close("FINISHED", 0.2)) == 99
    hangs.set()


def test_on_a_cluster_only_a_server_is_logged_to(params, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert live_log._can_log(params)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not live_log._can_log(params)
    for uri in ("http://mlflow:5000", "postgresql://me:secret@db/mlflow"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert live_log._can_log(params)
    off = params.model_copy(update={"registry": params.registry.model_copy(update={"live": False})})
    assert not live_log._can_log(off)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty project folder with MLflow's default store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it to where it is connected: undone at the end
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(live_log, "PATIENCE_S", 60)
    return tmp_path


def train(params, epochs, spool: Path, training: str = "train-1", history=()) -> None:
    with logged_live(params, training, history, spool) as log:
        for epoch in epochs:
            log(row_of(epoch))


def only_run(uri: str | None = None):
    client = mlflow_store.connect(mlflow_store.tracking_uri(uri))
    (run,) = client.search_runs([runs.experiment_id(client, "unetpp")])
    return client, run


def steps(client, run) -> dict[str, list[int]]:
    return {name: [one.step for one in client.get_metric_history(run.info.run_id, name)] for name in NAMES}


def test_run_of_a_training_is_completed_by_register_and_opened_once(params, store):
    spool = store / "reports" / live_log.UNLOGGED
    train(params, [1, 2], spool)
    # Stopped in the middle of the third epoch.
    with pytest.raises(SystemExit), logged_live(params, "train-1", [row_of(1), row_of(2)], spool):
        raise SystemExit(143)
    client, run = only_run()
    assert run.info.status == "KILLED"
    train(params, [3], spool, history=[row_of(1), row_of(2)])
    client, run = only_run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["training"] == "train-1"
    assert steps(client, run) == {name: [1, 2, 3] for name in NAMES}
    assert client.get_metric_history(run.info.run_id, "images_per_s")[2].value == 21
    assert not spool.exists()
    with runs.open_run(client, run.info.experiment_id, "nuclei abc", "abc", "train-1") as completed:
        assert completed.info.run_id == run.info.run_id
        assert completed.info.status == "RUNNING"
    client, run = only_run()
    assert (run.info.status, run.info.run_name, run.data.tags["fingerprint"]) == ("FINISHED", "nuclei abc", "abc")
    train(params, [1, 2, 3], spool)  # once more, as after `dvc repro --force`
    client, run = only_run()
    assert steps(client, run) == {name: [1, 2, 3] for name in NAMES}
    with runs.open_run(client, run.info.experiment_id, "nuclei def", "def", "train-1") as other:
        assert other.info.run_id != run.info.run_id  # another evaluation of the same training


def log_curves(client, run, folder: Path, epochs, training: str) -> None:
    """What stage register does about curves."""
    rows = [
        {"epoch": epoch, "depth": f"L{depth}", "val_iou": f"{epoch / 10 + depth / 100:.6f}", "val_loss": "0.5"}
        | {"train_loss": f"{1 / epoch:.6f}", "learning_rate": "1.000e-01"}
        for epoch in epochs
        for depth in (1, 2)
    ]
    write_csv(folder / "curves.csv", rows)
    inputs = Inputs(Path(), Path(), folder / "curves.csv", Path())
    for _ in range(2):  # an attempt that was cut after it, and the next
        run_log.log_curves(client, client.get_run(run.info.run_id), inputs, training)


@pytest.mark.slow
def test_server_that_is_down_at_start_middle_and_end_has_every_epoch_once_after_register(params, store, monkeypatch):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(live_log, "RETRY_S", 0.5)
    monkeypatch.setattr(live_log, "PATIENCE_S", 3)
    mlflow_store.connect(f"sqlite:///{store}/mlflow.db")  # its migrations are not what is tested
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # which MLflow sets to where it is connected

    def serve() -> MlflowServer:
        return MlflowServer(store, f"sqlite:///{store}/mlflow.db", str(store / "artifacts"), port=port)

    def has(epochs: list[int]) -> bool:
        return steps(*only_run(uri)) == {name: epochs for name in NAMES}

    spool = store / "reports" / live_log.UNLOGGED
    # What capfd reads while a thread prints is lost at times.
    with redirect_stderr(io.StringIO()) as said, logged_live(params, "train-1", [], spool) as log:
        for part, epochs in enumerate(([1, 2], [4])):
            for number in epochs:
                log(row_of(number))
            wait_for(lambda part=part: said.getvalue().count("cannot log to MLflow, retrying") == part + 1)
            server = serve()
            wait_for(lambda part=part: said.getvalue().count("logging to MLflow again") == part + 1)
            if part == 0:
                log(row_of(3))
            wait_for(lambda part=part: has([1, 2, 3, 4][: part + 3]))
            os.killpg(server._process.pid, signal.SIGKILL)
            server.close()
        log(row_of(5))
        log(row_of(6))
    assert [row["epoch"] for row, _ in read_unlogged(spool, "train-1")] == [5, 6]
    assert read_unlogged(spool, "train-2") == []

    client, run = only_run(f"sqlite:///{store}/mlflow.db")  # the server's own: it is up again
    assert run.info.status == "RUNNING"  # nobody could say that it had ended
    log_curves(client, run, spool.parent, range(1, 8), "train-1")  # a seventh is in no file but the curves
    found = {name: sorted(values) for name, values in steps(client, run).items()}
    assert found.pop("images_per_s") == [1, 2, 3, 4, 5, 6]
    assert found == {name: [1, 2, 3, 4, 5, 6, 7] for name in NAMES[:-1]}


@pytest.mark.slow
def test_killed_training_goes_on_in_the_same_run(project, prepared):
    """One process without Ray; the run of several processes is told of epochs by Ray, and otherwise the same."""
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    uri = f"sqlite:///{project.folder}/mlflow.db"
    project.set({"train": {"epochs": 40, "num_workers": 1}, "register": {"live": True, "tracking_uri": uri}})
    arguments = ("--prepared", str(prepared), *ARGUMENTS)
    killed = project.start("train", *arguments)
    wait_for(lambda: "epoch 10/40" in project.log("train"), timeout_s=120)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    project.run("train", *arguments)
    client, run = only_run(uri)
    assert run.info.status == "FINISHED"
    for name in ("val_iou/L1", "val_loss/L2", "train_loss", "learning_rate", "images_per_s"):
        assert Counter(one.step for one in client.get_metric_history(run.info.run_id, name)) == Counter(range(1, 41))
