"""Checkpoints in a folder and in a bucket over real HTTP: the same laws for both, and real workers on a bucket."""

import os
import pickle
import signal

import psutil
import pytest
import torch

from pipelines.core.params import load_params
from pipelines.storage import places
from pipelines.storage.run_store import STOP, RunStore, StopFile, begin, check_shared, open_store, runs_at
from tests.conftest import REPOSITORY
from tests.pipelines.training.small import ARGUMENTS, run_processes, spec_of
from tests.pipelines.tuning.declared import arguments as search_arguments
from tests.servers import s3_error
from unetpp.errors import UserError
from unetpp.models.model_file import load_model
from unetpp.training.checkpoint import MANIFEST, STATE

PARAMS = load_params(REPOSITORY / "params.yaml")


@pytest.fixture
def run(place) -> RunStore:
    return RunStore(place)


def state(epoch: int, step: int = 0) -> dict:
    inside = {"step": step} if step else {}
    return {"epoch": epoch, "weights": {"w": torch.full((500,), float(epoch))}} | inside


def names_of(*checkpoints: str) -> list[str]:
    return sorted(f"{one}/{file}" for one in checkpoints for file in (STATE, MANIFEST))


def flip(content: bytearray) -> bytes:
    content[len(content) // 2] ^= 1
    return bytes(content)


def test_newest_checkpoint_is_the_furthest_and_two_are_kept(run):
    assert run.newest() == ({}, [])
    for epoch, step in ((0, 3), (1, 0), (1, 7), (2, 0)):
        run.add(state(epoch, step))
    found, passed_over = pickle.loads(pickle.dumps(run)).newest()  # as it travels to a worker
    assert (found["epoch"], passed_over) == (2, [])
    assert torch.equal(found["weights"]["w"], torch.full((500,), 2.0))
    assert sorted(run.place.list()) == names_of("checkpoint_000001_00000007", "checkpoint_000002_00000000")


@pytest.mark.parametrize(
    ("file", "change"),
    [(STATE, flip), (STATE, lambda old: old[:-1]), (STATE, None), (MANIFEST, None), (MANIFEST, lambda _old: b"{")],
    ids=["flipped byte", "truncated", "no state", "no manifest", "torn manifest"],
)
def test_damaged_checkpoint_is_said_passed_over_and_gone_with_the_next(run, file, change):
    for epoch in (1, 2, 3):
        run.add(state(epoch))
    name = f"checkpoint_000003_00000000/{file}"
    if change is None:
        run.place.delete(name)
    else:
        run.write(name, bytes(change(bytearray(run.read(name)))))
    found, passed_over = run.newest()
    assert found["epoch"] == 2
    assert len(passed_over) == 1
    assert passed_over[0].startswith(f"{run.name}/checkpoint_000003_00000000: ")
    # Who goes on from the whole one makes the same again, perhaps by way of one inside of the epoch: two are kept then.
    run.add(state(2, 5))
    assert run.newest()[1] == []
    assert sorted(run.place.list()) == names_of("checkpoint_000002_00000000", "checkpoint_000002_00000005")
    run.add(state(3))
    assert run.newest()[0]["epoch"] == 3


def test_what_killed_writers_have_left_is_gone_with_the_next_checkpoint(run):
    run.add(state(1))
    half = ("checkpoint_000002_00000000/.state.pt.abc", ".checkpoint_000001_00000000.partial/state.pt")
    for name in (*half, "hours.json"):
        run.write(name, b"half")
    assert run.newest()[0]["epoch"] == 1
    run.add(state(2))
    assert set(run.place.list()) == {
        *names_of("checkpoint_000001_00000000", "checkpoint_000002_00000000"),
        "hours.json",
    }


@pytest.mark.parametrize("file", [STATE, MANIFEST])
def test_write_that_fails_in_the_middle_leaves_a_whole_checkpoint(bucket, monkeypatch, file):
    monkeypatch.setattr("pipelines.storage.s3.ATTEMPTS", 1)
    run = open_store(f"s3://{bucket.name}/a prefix", bucket.params().s3)
    run.add(state(1))
    bucket.fault = lambda request, answer: (
        s3_error(503, "SlowDown") if request.method == "PUT" and file in request.path else answer
    )
    with pytest.raises(UserError, match="the store fails"):
        run.add(state(2))
    bucket.fault = lambda _request, answer: answer
    found, _ = run.newest()
    assert found["epoch"] == (1 if file == STATE else 2)  # it arrives, and its answer is lost: with the manifest whole
    run.add(state(2))
    found, passed_over = run.newest()
    assert (found["epoch"], passed_over) == (2, [])


def test_run_that_begins_is_not_asked_to_stop_any_more(run, monkeypatch):
    monkeypatch.setattr(places.Bucket, "ask_every_s", 0)
    run.write(STOP, b"")
    assert StopFile(run)()
    begin(run)
    stop = StopFile(run)
    assert not stop()
    run.write(STOP, b"")
    assert stop()


def test_bucket_is_asked_every_few_seconds_alone(s3_place, bucket):
    stop = StopFile(RunStore(s3_place))
    bucket.proxy.requests.clear()
    assert not any(stop() for _ in range(100))
    assert len(bucket.proxy.requests) == 1


def test_place_that_the_stage_has_not_written_to_is_refused(run):
    with pytest.raises(UserError, match=r"this machine does not see what the stage wrote there"):
        check_shared(run)
    begin(run)
    check_shared(run)


def test_runs_are_in_the_storage_of_the_cluster_where_it_has_one(tmp_path):
    def at(storage: str | None) -> str:
        return runs_at(
            PARAMS.model_copy(update={"cluster": PARAMS.cluster.model_copy(update={"storage": storage})}), tmp_path
        )

    assert at(None) == str(tmp_path)
    assert at("/shared/") == "/shared/runs"
    assert at("s3://bucket/prefix") == "s3://bucket/prefix/runs"


# Real processes.


@pytest.mark.ray
@pytest.mark.nightly  # test_elastic trains on a bucket, test_ray_faults kills workers, the laws of a place are above
def test_workers_on_a_bucket_go_on_from_it_after_each_fault_and_end_as_on_a_folder(
    project, prepared, params, bucket, tmp_path
):
    """A worker is killed; the run is asked to stop by a file; its newest checkpoint is damaged; it ends."""
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    short = {"epochs": 16, "checkpoint_every_steps": 3, "num_workers": 2, "precision": "fp32"}
    project.set(
        {"train": short, "cluster": {"storage": f"s3://{bucket.name}/shared", "cache": str(tmp_path / "cache")}}
    )
    project.params["ingest"]["s3"]["endpoint"] = bucket.proxy.url
    project.set({})
    arguments = ("--prepared", str(prepared), *ARGUMENTS)

    training = project.start("train", *arguments)
    project.wait_for(training, "train", "epoch 3/16")
    family = psutil.Process(training.pid).children(recursive=True)
    next(one for one in family if "RayTrainWorker" in one.name() + " ".join(one.cmdline())).kill()
    project.wait_for(training, "train", "resuming after epoch")
    after = project.log("train").rpartition("resuming after epoch")[2].split()[0]
    project.wait_for(training, "train", f"epoch {int(after) + 2}/16")
    listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix="shared/runs/")["Contents"]
    run = listed[0]["Key"].split("/")[2]
    bucket.client.put_object(Bucket=bucket.name, Key=f"shared/runs/{run}/{STOP}", Body=b"")
    assert training.wait(60) == 128 + signal.SIGTERM, project.log("train")
    assert "epoch 40/16" not in project.log("train")
    assert not (project.folder / "runs").exists()

    store = open_store(f"s3://{bucket.name}/shared/runs/{run}", load_params(project.folder / "params.yaml").ingest.s3)
    checkpoints = sorted({one["Key"].split("/")[3] for one in listed if "checkpoint_" in one["Key"]})
    assert len(checkpoints) >= 2
    newest = store.newest()[0]
    name = f"checkpoint_{newest['epoch']:06}_{newest.get('step', 0):08}"
    store.write(f"{name}/{STATE}", flip(bytearray(store.read(f"{name}/{STATE}") or b"")))
    printed = project.run("train", *arguments)
    assert f"skipped damaged checkpoint: s3://{bucket.name}/shared/runs/{run}/{name}: expected" in printed
    assert "epoch 1/16" not in printed
    trained = load_model(project.folder / "models/train").network.state_dict()

    whole = spec_of(params, prepared, **short)
    on_folder = run_processes(2, {"whole": (whole, None)}, tmp_path)["whole"][0][-1]
    assert all(torch.equal(value, trained[key]) for key, value in on_folder.best.weights.items())
    assert "already finished" in project.run("train", *arguments)


@pytest.mark.ray
@pytest.mark.nightly  # test_search kills one on a folder
def test_killed_search_goes_on_from_a_bucket(project, prepared, bucket):
    project.set({"search": {"widths": [[4, 6], [4, 6, 8]], "epochs": 6}})
    project.set({"cluster": {"storage": f"s3://{bucket.name}/shared", "cache": str(project.folder / "cache")}})
    project.params["ingest"]["s3"]["endpoint"] = bucket.proxy.url
    project.set({})
    searching = project.start("search", *search_arguments(prepared))
    project.wait_for(searching, "search", ": epoch 2,")
    os.kill(searching.pid, signal.SIGKILL)
    searching.wait()
    assert "chosen" not in project.log("search")
    printed = project.run("search", *search_arguments(prepared))
    assert f"s3://{bucket.name}/shared/runs/search-" in printed
    assert "the search resumes" in printed
    assert "chosen: " in printed
    assert (project.folder / "models/search/init.pt").is_file()
    assert not (project.folder / "runs").exists()
