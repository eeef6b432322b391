"""An address over real HTTP: resumed where it broke, asked again only where it may have changed."""

import hashlib
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.ingest import ingest
from tests.pipelines.storage.sources import PAIR, contents, located, start_ingest, write_tar, write_zip
from tests.servers import Answer, Server, file_answer
from unetpp.errors import UserError

NOISE = {"images/noise.png": random.Random(0).randbytes(10**6)}


class Site:
    """A server of one archive; `answer` may be changed."""

    def __init__(self, content: bytes):
        self.content = content
        self.answer = file_answer(content)
        self.server = Server(lambda request, body: self.answer(request, body))

    def params(self, sha256: str | None = None):
        return located("http", f"{self.server.url}/set.zip", sha256=sha256)

    def asked(self) -> list[str | None]:
        """The Range headers since the last call."""
        ranges = [request.headers.get("range") for request in self.server.requests]
        self.server.requests.clear()
        return ranges


@pytest.fixture
def site(tmp_path):
    made = Site(write_zip(tmp_path / "set.zip", (PAIR | NOISE).items()).read_bytes())
    yield made
    made.server.close()


def raw(tmp_path: Path) -> dict[str, bytes]:
    found = contents(tmp_path / "raw")
    found.pop("manifest.json")
    return found


def test_an_archive_arrives_by_address_and_says_how_to_pin_it(site, tmp_path, capsys):
    manifest = ingest(site.params(), tmp_path / "raw", tmp_path / "cache")
    digest = hashlib.sha256(site.content).hexdigest()
    assert raw(tmp_path) == PAIR | NOISE
    assert manifest["source"] == {"kind": "http", "location": site.params().location, "sha256": digest}
    assert f"-S ingest.sha256={digest}" in capsys.readouterr().out


def test_a_tar_arrives_by_address_too(site, tmp_path):
    site.answer = file_answer(write_tar(tmp_path / "a", PAIR.items(), "w:xz").read_bytes())
    ingest(site.params(), tmp_path / "raw", tmp_path / "cache")
    assert raw(tmp_path) == PAIR


def test_a_pinned_archive_is_asked_for_once_in_all(site, tmp_path):
    params = site.params(hashlib.sha256(site.content).hexdigest())
    ingest(params, tmp_path / "raw", tmp_path / "cache")
    ingest(params, tmp_path / "raw", tmp_path / "cache")
    assert len(site.asked()) == 1


def test_an_archive_without_a_pin_is_fetched_again_when_the_server_says_it_changed(site, tmp_path):
    ingest(site.params(), tmp_path / "raw", tmp_path / "cache")
    before = site.server.requests.copy()
    ingest(site.params(), tmp_path / "raw", tmp_path / "cache")
    assert site.server.requests[len(before)].headers["if-none-match"] == '"one"'
    assert raw(tmp_path) == PAIR | NOISE
    site.answer = file_answer(write_zip(tmp_path / "b.zip", PAIR.items()).read_bytes(), etag='"two"')
    ingest(site.params(), tmp_path / "raw", tmp_path / "cache")
    assert raw(tmp_path) == PAIR


def test_a_download_that_breaks_off_goes_on_by_range_in_the_same_run(site, tmp_path):
    whole, cuts = site.answer, iter([300_000, 400_000])
    site.answer = lambda request, body: replace(whole(request, body), cut=next(cuts, None))
    ingest(site.params(), tmp_path / "raw", tmp_path / "cache")
    assert raw(tmp_path) == PAIR | NOISE
    assert site.asked() == [None, "bytes=300000-", "bytes=700000-"]


def test_a_server_without_range_sends_all_of_it_again(site, tmp_path):
    whole, cuts = file_answer(site.content, ranges=False), iter([300_000])
    site.answer = lambda request, body: replace(whole(request, body), cut=next(cuts, None))
    ingest(site.params(), tmp_path / "raw", tmp_path / "cache")
    assert raw(tmp_path) == PAIR | NOISE
    assert len(site.asked()) == 2


def test_two_halves_of_different_files_are_never_put_together(site, tmp_path):
    files = PAIR | {"images/noise.png": random.Random(1).randbytes(10**6)}
    other = write_zip(tmp_path / "b.zip", files.items()).read_bytes()
    first, second = file_answer(site.content), file_answer(other, etag='"two"')
    answers = iter([lambda request, body: replace(first(request, body), cut=300_000)])
    site.answer = lambda request, body: next(answers, second)(request, body)
    manifest = ingest(site.params(), tmp_path / "raw", tmp_path / "cache")
    assert manifest["source"]["sha256"] == hashlib.sha256(other).hexdigest()


def test_a_server_that_is_busy_three_times_is_asked_a_fourth_time(site, tmp_path):
    whole, answers = site.answer, iter([Answer(503, {}, b"")] * 3)
    site.answer = lambda request, body: next(answers, None) or whole(request, body)
    ingest(site.params(), tmp_path / "raw", tmp_path / "cache")
    assert len(site.asked()) == 4


def test_a_wrong_sha256_leaves_the_old_data_as_they_were(site, tmp_path):
    ingest(site.params(), tmp_path / "raw", tmp_path / "cache")
    with pytest.raises(UserError, match=r"found the sha256 [0-9a-f]{64}; expected 0{64}"):
        ingest(site.params("0" * 64), tmp_path / "raw", tmp_path / "cache")
    assert raw(tmp_path) == PAIR | NOISE


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_asks_only_for_the_rest(site, tmp_path, end):
    whole, hold = site.answer, threading.Event()
    site.answer = lambda request, body: replace(whole(request, body), cut=500_000, hold=hold)
    process = start_ingest(tmp_path, site.params())
    while not any(path.stat().st_size >= 400_000 for path in tmp_path.glob("data/cache/http/*/partial")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(end)
    process.communicate(timeout=30)
    assert process.returncode == (130 if end == signal.SIGINT else -signal.SIGKILL)
    hold.set()
    here = next(tmp_path.glob("data/cache/http/*/partial")).stat().st_size
    site.answer = whole
    site.asked()
    again = start_ingest(tmp_path, site.params())
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert site.asked() == [f"bytes={here}-"]
    assert contents(tmp_path / "data/raw").keys() == (PAIR | NOISE).keys() | {"manifest.json"}
