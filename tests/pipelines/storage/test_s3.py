"""A bucket over real HTTP: what arrives, what is asked for, and what is not asked for again."""

import hashlib
import json
import os
import pty
import shutil
import signal
import tarfile
import termios
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pipelines.console import progress
from pipelines.core.params import load_params
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.storage import s3_download
from tests.conftest import REPOSITORY
from tests.pipelines.storage.sources import PAIR, SETS, contents, start_ingest
from tests.servers import PAGE, Request, s3_error
from tests.waiting import wait_for
from unetpp.errors import UserError
from unetpp.files import sha256


def keys(requests: list[Request]) -> list[str]:
    return sorted(request.path.partition("/set/")[2].partition("?")[0] for request in requests)


@pytest.mark.parametrize(
    "files",
    [pytest.param(files, marks=[pytest.mark.nightly] * (name != "pairs"), id=name) for name, files in SETS.items()],
)
@pytest.mark.parametrize("prefix", ["", "a b/", "deep/down/"])
def test_objects_arrive_unchanged_and_the_manifest_pins_them(bucket, tmp_path, files, prefix):
    bucket.put(files | {"notes.txt": b"x", "images/": b"", "images/.DS_Store": b"x"}, prefix)
    manifest = ingest(bucket.params(prefix.rstrip("/")), tmp_path / "raw", tmp_path / "cache")
    assert contents(tmp_path / "raw") == files | {"manifest.json": (tmp_path / "raw/manifest.json").read_bytes()}
    assert manifest["files"] == [
        {
            "key": key,
            "size": len(content),
            "etag": hashlib.md5(content).hexdigest(),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for key, content in sorted(files.items())
    ]
    assert all(request.headers["if-match"] for request in bucket.reads())


def test_a_versioned_bucket_gives_version_ids_that_stay_in_a_second_manifest(bucket, tmp_path):
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    bucket.put(PAIR)
    first = ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    for file in first["files"]:
        head = bucket.client.head_object(Bucket=bucket.name, Key=f"set/{file['key']}")
        assert file["version_id"] == head["VersionId"]
    assert ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache") == first


def test_more_than_a_page_of_objects_is_listed(bucket, tmp_path):
    bucket.put({f"images/{number:04}.png": b"x" for number in range(2 * PAGE)} | {"masks/0000.png": b"x"})
    assert len(ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")["files"]) == 2 * PAGE + 1
    listings = [request for request in bucket.proxy.requests if not request.is_object]
    assert len(listings) == 3


def test_a_second_run_fetches_what_changed_and_forgets_what_is_gone(bucket, tmp_path):
    bucket.put(PAIR | {"images/b.png": b"b", "masks/b.png": b"b", "images/c.png": b"c"})
    ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    assert len(bucket.reads()) == 5
    ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    assert bucket.reads() == []
    bucket.put({"images/b.png": b"other", "images/new.png": b"n"})
    bucket.client.delete_object(Bucket=bucket.name, Key="set/images/c.png")
    manifest = ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    assert keys(bucket.reads()) == ["images/b.png", "images/new.png"]
    assert (tmp_path / "raw/images/b.png").read_bytes() == b"other"
    assert len(manifest["files"]) == 5
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and len(path.name) == 40]
    assert len(cached) == 5


def test_a_file_of_the_cache_that_somebody_wrote_into_is_fetched_again(bucket, tmp_path):
    bucket.put(PAIR)
    ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    with (tmp_path / "raw/images/a.png").open("r+b") as file:
        file.write(b"mine")
    bucket.reads()
    ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    assert keys(bucket.reads()) == ["images/a.png"]
    assert (tmp_path / "raw/images/a.png").read_bytes() == PAIR["images/a.png"]


def test_a_large_object_comes_in_parts_and_a_cut_run_goes_on_with_the_rest(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_download, "PART_BYTES", 1000)
    content = os.urandom(9500)
    bucket.put(PAIR | {"images/large.png": content})
    refused = s3_error(403, "AccessDenied")
    bucket.fault = lambda request, answer: refused if request.headers.get("range") == "bytes=7000-7999" else answer
    params = bucket.params().model_copy(update={"num_workers": 1})
    with pytest.raises(UserError, match=r"large\.png: cannot be read: access denied"):
        ingest(params, tmp_path / "raw", tmp_path / "cache")
    assert len(bucket.reads()) == 1 + 8  # a.png before, seven parts and the one that is refused; the mask comes after
    bucket.fault = lambda _request, answer: answer
    ingest(params, tmp_path / "raw", tmp_path / "cache")
    assert (tmp_path / "raw/images/large.png").read_bytes() == content
    ranges = [request.headers.get("range") for request in bucket.reads()]
    assert ranges == ["bytes=7000-7999", "bytes=8000-8999", "bytes=9000-9499", None]


def test_a_body_that_breaks_off_goes_on_where_it_broke(bucket, tmp_path):
    content = os.urandom(10**6)
    bucket.put(PAIR | {"images/large.png": content})
    cuts = iter([300_000, 200_000])

    def fault(request, answer):
        if "large" in request.path and (cut := next(cuts, None)):
            return replace(answer, cut=cut)
        return answer

    bucket.fault = fault
    ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    assert (tmp_path / "raw/images/large.png").read_bytes() == content
    starts = [request.headers.get("range", "bytes=0-") for request in bucket.reads() if "large" in request.path]
    assert len(starts) == 3
    assert starts == sorted(starts, key=lambda value: int(value[6:].partition("-")[0]))
    assert int(starts[2][6:].partition("-")[0]) > 200_000


def test_a_store_that_is_busy_three_times_is_asked_a_fourth_time(bucket, tmp_path):
    bucket.put(PAIR)
    answers = iter([s3_error(503, "SlowDown")] * 3)
    bucket.fault = lambda request, answer: next(answers, answer) if "images/a.png" in request.path else answer
    ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    assert keys(bucket.reads()) == ["images/a.png"] * 4 + ["masks/a.png"]


def test_requests_are_unsigned_for_anonymous_and_name_the_payer_where_asked(bucket, tmp_path, monkeypatch):
    bucket.put(PAIR)
    ingest(bucket.params(requester_pays=True), tmp_path / "raw", tmp_path / "cache")
    assert {request.headers.get("x-amz-request-payer") for request in bucket.proxy.requests} == {"requester"}
    bucket.client.put_bucket_acl(Bucket=bucket.name, ACL="public-read")
    for key in PAIR:
        bucket.client.put_object_acl(Bucket=bucket.name, Key=f"set/{key}", ACL="public-read")
    bucket.proxy.requests.clear()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    ingest(bucket.params(anonymous=True), tmp_path / "raw", tmp_path / "other cache")
    assert not any("authorization" in request.headers for request in bucket.proxy.requests)


def test_a_store_that_rejects_new_checksums_works_with_the_param_that_its_error_names(bucket, tmp_path):
    bucket.put(PAIR)

    def fault(request, answer):
        if "x-amz-checksum-mode" in request.headers:
            return s3_error(501, "NotImplemented", "A header you provided implies functionality not implemented")
        return answer

    bucket.fault = fault
    with pytest.raises(UserError, match=r"ingest\.s3\.checksums=when_required"):
        ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    ingest(bucket.params(checksums="when_required"), tmp_path / "raw", tmp_path / "cache")
    assert (tmp_path / "raw/images/a.png").read_bytes() == PAIR["images/a.png"]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_fetches_only_the_rest(bucket, tmp_path, end):
    files = {f"{folder}/{number:02}.png": os.urandom(100) for folder in ("images", "masks") for number in range(20)}
    bucket.put(files)
    hold, passes, held = threading.Event(), iter(range(15)), []

    def fault(request, answer):
        if request.is_object and next(passes, None) is None:
            held.append(request)
            hold.wait(60)
        return answer

    bucket.fault = fault
    process = start_ingest(tmp_path, bucket.params())
    wait_for(lambda: len(held) == 4, process)  # all four threads wait
    process.send_signal(end)
    _, said = process.communicate(timeout=30)
    assert process.returncode == (130 if end == signal.SIGINT else -signal.SIGKILL)
    assert said == ("interrupted; rerun the command to resume\n" if end == signal.SIGINT else "")
    assert not (tmp_path / "data/raw").exists()
    bucket.fault = lambda _request, answer: answer
    hold.set()
    bucket.reads()
    again = start_ingest(tmp_path, bucket.params())
    _, said = again.communicate(timeout=60)
    assert (again.returncode, said) == (0, "")  # no progress bar where there is no terminal
    assert len(bucket.reads()) == 40 - 15
    assert contents(tmp_path / "data/raw").keys() == files.keys() | {"manifest.json"}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["cache", "raw"]


def test_progress_is_shown_on_a_terminal(bucket, tmp_path, monkeypatch):
    """And on nothing else: the test above finds nothing on a pipe."""
    bucket.put(PAIR)
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    monkeypatch.setattr(progress, "SILENT_S", 0)  # else nothing is shown of what is quick
    monkeypatch.setattr(progress, "EVERY_S", 0)
    with os.fdopen(terminal, "w") as screen:
        monkeypatch.setattr("sys.stderr", screen)
        ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
        screen.flush()
        shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "ETA" in shown


def test_a_line_that_a_cut_run_left_half_written_is_no_line(bucket, tmp_path):
    bucket.put(PAIR)
    ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    journal = next((tmp_path / "cache").rglob("journal.jsonl"))
    lines = journal.read_text().splitlines()
    journal.write_text(lines[0] + "\n" + lines[1][:30])
    bucket.reads()
    ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    assert len(bucket.reads()) == 1
    assert [json.loads(line)["sha256"] for line in journal.read_text().splitlines()]


def test_two_runs_do_not_share_a_cache_at_once(bucket, tmp_path):
    bucket.put(PAIR)
    messages = []

    def fault(request, answer):
        if "images/a.png" in request.path and not messages:
            with pytest.raises(UserError, match="another run is downloading into this folder") as caught:
                ingest(bucket.params(), tmp_path / "other", tmp_path / "cache")
            messages.append(str(caught.value))
        return answer

    bucket.fault = fault
    ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    assert messages


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_real_sample_is_the_same_data_by_every_way(bucket, tmp_path, shared_data):
    archive = shared_data / "bbbc038_sample.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "folder")
    root = next(path.parent.parent.parent for path in (tmp_path / "folder").rglob("*.png"))
    with tarfile.open(tmp_path / "sample.tar.gz", "w:gz") as packed:
        packed.add(root, "sample")
    for path in root.rglob("*.png"):
        bucket.put({path.relative_to(root).as_posix(): path.read_bytes()})
    bucket.client.upload_file(str(archive), bucket.name, "sample.zip", ExtraArgs={"ACL": "public-read"})
    ways = {
        "zip": {"location": str(archive)},
        "tar": {"location": str(tmp_path / "sample.tar.gz")},
        "folder": {"location": str(root)},
        "http": {"location": f"{bucket.proxy.url}/{bucket.name}/sample.zip"},
        "s3": {},
    }
    raw, prepared = {}, {}
    for kind, update in ways.items():
        params = bucket.params().model_copy(update={"kind": kind} | update)
        manifest = ingest(params, tmp_path / kind / "raw", tmp_path / "cache")
        raw[kind] = {file["key"]: (file["size"], file["sha256"]) for file in manifest["files"]}
        out = tmp_path / kind / "prepared"
        made = prepare(load_params(REPOSITORY / "params.yaml").prepare, tmp_path / kind / "raw", out)
        prepared[kind] = {path.name: sha256(path) for path in out.iterdir() if path.name != "manifest.json"}
        prepared[kind]["manifest"] = replace(made, raw_sha256=None)  # the raw manifest says which way the files came
    assert len({key.split("/")[0] for key in raw["zip"]}) == 31
    for kind in ways:
        assert raw[kind] == raw["zip"]
        assert prepared[kind] == prepared["zip"]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.shared_data
def test_the_whole_real_set_is_the_same_data_by_every_way_on_any_number_of_processes(
    bucket, tmp_path, shared_data, monkeypatch
):
    monkeypatch.setattr("pipelines.dataset.loading.num_cores", lambda: 3)
    root = shared_data / "dsb2018"
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in names:
            archive.write(root / name, name)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: bucket.put({name: (root / name).read_bytes()}), names))
    params = load_params(REPOSITORY / "params.yaml").prepare
    ways = {
        "folder": ({"location": str(root)}, 1),
        "zip": ({"location": str(tmp_path / "set.zip")}, 2),
        "s3": ({}, 3),
    }
    found = []
    for kind, (update, num_workers) in ways.items():
        raw, out = tmp_path / kind / "raw", tmp_path / kind / "prepared"
        ingest(bucket.params().model_copy(update={"kind": kind} | update), raw, tmp_path / "cache")
        made = prepare(params.model_copy(update={"num_workers": num_workers}), raw, out)
        files = {path.name: sha256(path) for path in out.iterdir() if path.name != "manifest.json"}
        found.append((replace(made, raw_sha256=None), files))
        shutil.rmtree(raw)
    assert found[0] == found[1] == found[2]
    assert sum(split.num_images for split in found[0][0].splits.values()) == 547
