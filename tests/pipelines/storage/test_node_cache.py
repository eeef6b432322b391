"""A node's cache: one fetch whoever asks, checked, and whole after every kill."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipelines.core.params import Params, load_params
from pipelines.core.sections.ingest import S3
from pipelines.storage.node_cache import fetch, find_file, share
from pipelines.storage.places import Place
from tests.conftest import REPOSITORY
from tests.servers import Answer, Request
from tests.waiting import wait_for
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import read_manifest
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.network.masks import FOR_INSTANCES

PARAMS = load_params(REPOSITORY / "params.yaml")
CONTENT = os.urandom(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


NAME = f"{DIGEST}.arrow"
WHOLE = {NAME, f"{DIGEST}.json", f"{DIGEST}.lock"}


class Node:
    """A node with an empty cache, and a file in the storage that it shares."""

    def __init__(self, storage: Place, s3: S3, folder: Path):
        self.storage, self.cache = storage, folder / "a cache"
        values = {"cache": str(self.cache), "s3": s3.model_dump(mode="json"), "digests": {"train": DIGEST}}
        self.shared = {"storage": storage.location} | values
        storage.write(NAME, CONTENT)

    def params(self) -> Params:
        cluster = PARAMS.cluster.model_copy(update={"storage": self.storage.location, "cache": str(self.cache)})
        ingest = PARAMS.ingest.model_copy(update={"s3": S3.model_validate(self.shared["s3"])})
        return PARAMS.model_copy(update={"cluster": cluster, "ingest": ingest})

    def files(self) -> set[str]:
        return {path.name for path in self.cache.iterdir()} if self.cache.exists() else set()


@pytest.fixture
def node(place, bucket, tmp_path) -> Node:
    return Node(place, bucket.params().s3, tmp_path)


@pytest.fixture
def s3_node(s3_place, bucket, tmp_path) -> Node:
    return Node(s3_place, bucket.params().s3, tmp_path)


def test_a_file_is_fetched_once_and_then_lies_here(node):
    path = find_file(node.shared, "train")
    assert path.read_bytes() == CONTENT
    assert node.files() == WHOLE
    node.storage.write(NAME, b"gone bad")
    assert find_file(node.shared, "train") == path
    assert path.read_bytes() == CONTENT


def ask(shared: dict, start, results) -> None:
    start.wait()
    path = find_file(shared, "train")
    results.put((os.getpid(), sha256(path)))


def test_four_processes_at_once_are_one_read_of_the_storage(s3_node, bucket):
    bucket.reads()
    context = multiprocessing.get_context("spawn")  # a server of before has another environment
    start, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=ask, args=(s3_node.shared, start, results)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert {digest for _, digest in answers} == {DIGEST}
    assert len({pid for pid, _ in answers}) == 4
    assert [request.method for request in bucket.reads()] == ["GET"]


SCRIPT = """
import json, sys
from pipelines.storage.node_cache import find_file

print(find_file(json.loads(sys.argv[1]), "train"), flush=True)
"""


def start_process(node: Node) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(node.shared)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_fetcher_that_is_killed_hands_over_to_the_one_that_waits(s3_node, bucket):
    hold, cuts = threading.Event(), iter([1_000_000])

    def half(request: Request, answer: Answer) -> Answer:
        cut = next(cuts, None) if request.is_object else None
        return replace(answer, cut=cut, hold=hold) if cut else answer

    bucket.fault = half
    bucket.reads()
    first = start_process(s3_node)
    partial = s3_node.cache / f"{DIGEST}.partial"
    wait_for(lambda: partial.exists() and partial.stat().st_size > 0)
    second = start_process(s3_node)
    lock = str(s3_node.cache / f"{DIGEST}.lock")
    wait_for(lambda: lock in [file.path for file in psutil.Process(second.pid).open_files()])  # where it waits
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    printed, _ = second.communicate(timeout=60)
    hold.set()
    assert first.stdout is not None
    first.stdout.close()
    assert Path(printed.strip()).read_bytes() == CONTENT
    assert s3_node.files() == WHOLE
    assert len(bucket.reads()) == 2


def test_a_kill_between_the_file_and_its_seal_costs_a_check_and_no_fetch(node):
    path = find_file(node.shared, "train")
    path.with_suffix(".json").unlink()
    node.storage.write(NAME, b"not asked for")
    assert find_file(node.shared, "train").read_bytes() == CONTENT
    assert node.files() == WHOLE


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
def test_a_file_of_the_cache_that_was_changed_or_removed_is_fetched_again(node, damage):
    path = find_file(node.shared, "train")
    damage(path)
    assert find_file(node.shared, "train").read_bytes() == CONTENT


def test_a_file_that_is_not_in_the_storage_is_named(node):
    shared = node.shared | {"digests": {"train": "0" * 64}}
    with pytest.raises(UserError, match=rf"{'0' * 64}\.arrow: no such file, and cluster\.storage should contain it"):
        find_file(shared, "train")
    assert node.files() == {f"{'0' * 64}.lock"}


@pytest.mark.parametrize(
    "content", [CONTENT[:-1], CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), b""], ids=["shorter", "a byte changed", "empty"]
)
def test_a_file_that_is_damaged_in_the_storage_is_refused_by_its_hash(node, content):
    node.storage.write(NAME, content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(UserError, match=rf"{DIGEST}\.arrow: found the sha256 {found}; expected {DIGEST}: remove it"):
        find_file(node.shared, "train")
    assert node.files() == {f"{DIGEST}.lock"}
    node.storage.write(NAME, CONTENT)
    assert find_file(node.shared, "train").read_bytes() == CONTENT


def test_a_disk_without_space_is_refused_before_the_first_byte(node, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=2 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"a cache: 3 MiB are needed and 2 MiB are free"):
        find_file(node.shared, "train")
    assert node.files() == {f"{DIGEST}.lock"}


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half(node):
    """A real limit of the system: no file of this process may grow beyond a million bytes."""
    script = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n" + SCRIPT
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script, json.dumps(node.shared)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "UserError" in done.stderr
    assert "a cache: the disk or quota is full" in done.stderr
    assert node.files() == {f"{DIGEST}.lock"}


def test_a_cache_that_cannot_be_made_is_named(node, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/cache: .*set cluster\.cache to one"):
        fetch(node.storage, tmp_path / "file" / "cache", DIGEST)


def test_the_stage_puts_files_there_once_and_a_worker_reads_them_from_its_cache(node, prepared, capsys):
    params, manifest = node.params(), read_manifest(prepared)
    shared = share(params, prepared, manifest)
    assert shared is not None
    assert capsys.readouterr().out.count("uploaded to") == 2
    assert share(params, prepared, manifest) == shared
    assert capsys.readouterr().out == ""
    for split in ("train", "val"):
        here = find_file(json.loads(json.dumps(shared)), split)
        assert here.parent == node.cache
        assert Split(here).ids == Split(prepared / f"{split}.arrow").ids


def test_val_at_its_own_size_travels_where_objects_are_parted_by_it(node, prepared):
    params, manifest = node.params(), read_manifest(prepared)
    model = params.model.model_copy(update={"targets": FOR_INSTANCES})
    shared = share(params.model_copy(update={"model": model}), prepared, manifest)
    assert shared is not None
    assert sha256(find_file(shared, manifest.full_val)) == manifest.val_full_sha256


def test_a_prepared_file_that_is_not_the_manifests_is_not_put_anywhere(node, prepared):
    manifest = read_manifest(prepared)
    manifest.splits["val"] = replace(manifest.splits["val"], sha256="0" * 64)
    with pytest.raises(UserError, match=r"val\.arrow: found the sha256 [0-9a-f]{64}; expected 0{64}"):
        share(node.params(), prepared, manifest)
    assert node.storage.size(f"{'0' * 64}.arrow") is None


def test_without_storage_nothing_is_put_anywhere(prepared):
    assert share(PARAMS, prepared, read_manifest(prepared)) is None
