"""The table of faults of a source: each ends with a message that names it, and nothing half-written."""

import gzip
import os
import re
import shutil
import socket
import tarfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipelines.core.sections.ingest import Ingest
from pipelines.ingest import ingest
from pipelines.storage import archives, http_download, s3, s3_download
from tests.pipelines.storage.buckets import Bucket
from tests.pipelines.storage.sources import (
    INGEST,
    PAIR,
    contents,
    link_entry,
    located,
    special,
    start_ingest,
    write_folder,
    write_source,
    write_tar,
    write_zip,
)
from tests.servers import Answer, free_port, s3_error
from unetpp.errors import UserError


def nightly(value):
    return pytest.param(value, marks=pytest.mark.nightly)


@dataclass
class World:
    """What a fault is made of."""

    folder: Path
    bucket: Bucket
    patch: pytest.MonkeyPatch

    def zip(self, *entries) -> Ingest:
        return located("zip", write_zip(self.folder / "a.zip", [*PAIR.items(), *entries]))

    def tar(self, *entries) -> Ingest:
        return located("tar", write_tar(self.folder / "a.tar.gz", [*PAIR.items(), *entries]))

    def raw_tar(self, content: bytes) -> Ingest:
        (self.folder / "a.tar").write_bytes(content)
        return located("tar", self.folder / "a.tar")

    def s3(self, fault=None, extra=None, **settings) -> Ingest:
        self.bucket.put(PAIR | (extra or {}))
        if fault:
            self.bucket.fault = fault
        return self.bucket.params(**settings)

    def s3_on_read(self, change: Callable[[Answer], Answer]) -> Ingest:
        """What a read of images/a.png is answered is changed."""
        return self.s3(lambda request, old: change(old) if "images/a.png" in request.path else old)

    def s3_on_list(self, answer: Answer) -> Ingest:
        return self.s3(lambda request, old: old if request.is_object else answer)

    def http(self, answer: Answer) -> Ingest:
        self.bucket.fault = lambda _request, _old: answer
        return located("http", f"{self.bucket.proxy.url}/a.zip")


FAULTS: dict[str, tuple[Callable[[World], Ingest], str]] = {}


def fault(message: str):
    """Add a way to make a fault to the table, with what its message must match."""

    def add(make: Callable[[World], Ingest]):
        FAULTS[make.__name__.replace("_", " ")] = (make, message)
        return make

    return add


@fault(r"a\.zip: entry 'images/link\.png' is a link or a device")
def link_in_a_zip(world):
    return world.zip((link_entry(), b"/etc/passwd"))


@fault(r"a\.tar: entry 'images/huge\.png' declares 5368709120 bytes, more than 4294967296")
def tar_entry_that_declares_more_than_it_holds(world):
    huge = tarfile.TarInfo("images/huge.png")
    huge.size = 5 * 2**30
    return world.raw_tar(gzip.compress(huge.tobuf()))


@fault(r"a\.tar: found no complete tar file \(a header declares \d+ bytes\)")
def tar_header_that_would_fill_the_memory(world):
    header = special("images/a.png", tarfile.XHDTYPE)
    header.size = 2**30
    return world.raw_tar(gzip.compress(header.tobuf() + bytes(2**20)))


@fault(r"a\.tar\.gz: entry 'images/a\.png' clashes with 'images/a\.png'")
def the_same_name_twice_in_a_tar(world):
    return world.tar(("images/a.png", b"x"))


@fault(r"a\.tar: found no complete tar file \(found no end mark at byte \d+: it is truncated or damaged\)")
def tar_cut_between_two_entries(world):
    path = write_tar(world.folder / "a.tar", PAIR.items(), "w")
    with tarfile.open(path) as archive:
        cut = archive.getmembers()[1].offset
    return world.raw_tar(path.read_bytes()[:cut])


@fault(r"a\.tar: found no complete tar file")
def packed_tar_cut(world):
    path = write_tar(world.folder / "whole.tar.gz", [*PAIR.items(), ("images/b.png", os.urandom(10**5))])
    return world.raw_tar(path.read_bytes()[:-5000])


@fault(r"a\.tar: found no complete tar file")
def text_in_place_of_a_tar(world):
    return world.raw_tar(b"hello")


@fault(r"a\.tar: found no such file; ingest\.location must be a tar file")
def no_such_tar(world):
    return located("tar", world.folder / "a.tar")


@fault(r"a\.zip: found the sha256 [0-9a-f]{64}; expected 0{64}: it is a different file")
def local_archive_of_another_sha256(world):
    return world.zip().model_copy(update={"sha256": "0" * 64})


@fault(r"s3://bucket-\d+/set/images/a\.png: changed while it was downloaded; rerun the command")
def object_that_changes_before_it_is_read(world):
    def change(request, answer):
        if request.is_object:
            return answer
        world.bucket.put({"images/a.png": b"another"})
        return answer

    return world.s3(change)


@fault(r"s3://bucket-\d+/set/images/large\.png: changed while it was downloaded")
def object_that_changes_between_two_parts(world):
    world.patch.setattr(s3_download, "PART_BYTES", 1000)

    def change(request, answer):
        if "bytes=1000-" in request.headers.get("range", ""):
            world.bucket.put({"images/large.png": os.urandom(5000)})
        return answer

    return world.s3(change, {"images/large.png": os.urandom(5000)}).model_copy(update={"num_workers": 1})


@fault(r"images/a\.png: is listed but gone \(404 NoSuchKey")
def object_that_is_deleted_before_it_is_read(world):
    def delete(request, answer):
        if not request.is_object:
            world.bucket.client.delete_object(Bucket=world.bucket.name, Key="set/images/a.png")
        return answer

    return world.s3(delete)


@fault(r"images/a\.png: the connection broke 2 times, last after 10 of \d+ bytes .*expected the whole object")
def object_that_is_cut_again_and_again(world):
    cuts = iter([10, 0])
    return world.s3_on_read(lambda old: replace(old, cut=next(cuts)))


@fault(r"images/a\.png: the store sends 10 bytes, the listing says \d+ .*is it truncated\?")
def object_that_is_shorter_than_listed(world):
    short = {"Content-Length": "10"}
    return world.s3_on_read(lambda old: replace(old, headers=old.headers | short, body=old.body[:10]))


@fault(r"images/a\.png: the bytes do not match the ETag [0-9a-f]{32} \(their MD5 differs\)")
def object_with_other_bytes_than_its_etag(world):
    return world.s3_on_read(lambda old: replace(old, headers=without_checksums(old), body=bytes(len(old.body))))


@fault(r"images/a\.png: the checksum does not match the bytes .*ingest\.s3\.checksums=when_required")
def object_with_another_checksum(world):
    other = {"x-amz-checksum-crc32": "AAAAAA=="}
    return world.s3_on_read(lambda old: replace(old, headers=without_checksums(old) | other))


@fault(r"s3://no-such-bucket/set: no bucket 'no-such-bucket' there \(404 NoSuchBucket.*correct ingest\.location")
def no_such_bucket(world):
    return world.s3().model_copy(update={"location": "s3://no-such-bucket/set"})


@fault(r"s3://bucket-\d+/nothing: found no files; expected images/")
def empty_prefix(world):
    return world.s3(prefix="nothing")


@fault(r"found no complete credentials; expected AWS_ACCESS_KEY_ID .*ingest\.s3\.anonymous=true for a public bucket")
def no_credentials(world):
    world.patch.delenv("AWS_ACCESS_KEY_ID")
    world.patch.delenv("AWS_SECRET_ACCESS_KEY")
    return world.s3()


@fault(r"no profile 'lab' in ~/\.aws; correct ingest\.s3\.profile")
def no_such_profile(world):
    return world.s3(profile="lab")


@fault(r"http://127\.0\.0\.1:\d+ cannot be reached .*correct ingest\.s3\.endpoint")
def endpoint_where_nobody_listens(world):
    return world.s3(endpoint=f"http://127.0.0.1:{free_port()}")


@fault(r"/a\.zip: cannot be fetched \(.*refused, 2 times")
def address_where_nobody_listens(_world):
    return located("http", f"http://127.0.0.1:{free_port()}/a.zip")


def without_checksums(answer: Answer) -> dict[str, str]:
    return {key: value for key, value in answer.headers.items() if not key.lower().startswith("x-amz-checksum")}


@pytest.fixture
def world(tmp_path, bucket, monkeypatch) -> World:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    monkeypatch.setattr(http_download, "ATTEMPTS", 2)
    return World(tmp_path, bucket, monkeypatch)


def refused(world: World, params: Ingest, message: str) -> None:
    """The stage names the fault, and nothing is written."""
    with pytest.raises(UserError, match=message):
        ingest(params, world.folder / "data/raw", world.folder / "data/cache")
    assert [path.name for path in (world.folder / "data").iterdir()] in ([], ["cache"])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_nothing_is_written(name, world):
    make, message = FAULTS[name]
    refused(world, make(world), message)


LINK = r"a\.tar\.gz: entry 'images/link\.png' is a "


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, LINK + "symbolic link, not a file"),
        (tarfile.LNKTYPE, LINK + "hard link, not a file"),
        (tarfile.CHRTYPE, LINK + "device or pipe, not a file"),
    ],
)
def test_an_entry_of_a_tar_that_is_no_file_is_refused(world, kind, message):
    refused(world, world.tar((special("images/link.png", kind, "/etc/passwd"), b"")), message)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("../evil.png", r"'set/\.\./evil\.png' has \.\. in its name"),
        ("/etc/evil.png", r"'set//etc/evil\.png' has an absolute name"),
        ("images/a%00.png", r"'set/images/a\\x00\.png' has a backslash or a NUL byte in its name"),
        ("images/a%5Cb.png", r"'set/images/a\\\\b\.png' has a backslash or a NUL byte in its name"),
        ("images//b.png", r"'set/images//b\.png' has an empty or a \. part in its name"),
        ("images/A.png", r"'set/images/A\.png' clashes with 'set/images/a\.png' if case and Unicode form are ignored"),
    ],
)
def test_an_unsafe_key_is_refused(world, key, message):
    """In a page as S3 encodes it: moto's own front would not take some of them."""
    entries = "".join(
        f'<Contents><Key>set/{one}</Key><Size>1</Size><ETag>"1"</ETag>'
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for one in ("images/a.png", key)
    )
    body = f"<ListBucketResult><EncodingType>url</EncodingType>{entries}</ListBucketResult>"
    params = world.s3_on_list(Answer(200, {"Content-Type": "application/xml"}, body.encode()))
    refused(world, params, rf"s3://[^ ]+: key {message}")


WHERE = r"s3://bucket-\d+/set"


@pytest.mark.parametrize(
    ("asked", "answer", "message"),
    [
        ("list", s3_error(403, "AccessDenied"), rf"{WHERE}: cannot be read: access denied \(403 Acc.* s3:ListBucket"),
        ("read", s3_error(403, "AccessDenied"), r"images/a\.png: cannot be read: access denied \(403.* s3:GetObject"),
        (
            "read",
            s3_error(403, "InvalidObjectState"),
            r"images/a\.png: the object is in archive storage .*restore it first",
        ),
        ("list", s3_error(503, "SlowDown"), rf"{WHERE}: the store fails, 2 times in a row \(503 SlowDown.*later"),
        ("list", s3_error(400, "ExpiredToken"), rf"{WHERE}: the credentials have expired \(400 ExpiredT.*renew them"),
        ("list", s3_error(403, "InvalidAccessKeyId"), r"the store does not accept the credentials \(403 InvalidAccess"),
        (
            "list",
            s3_error(400, "AuthorizationHeaderMalformed", Region="eu-north-1"),
            r"wrong region \(400 AuthorizationHeaderMalformed.*set ingest\.s3\.region to eu-north-1",
        ),
    ],
)
def test_an_error_of_the_store_says_what_to_do(world, asked, answer, message):
    refused(world, world.s3_on_list(answer) if asked == "list" else world.s3_on_read(lambda _old: answer), message)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "the server answers 404 Not Found; expected an archive there: correct ingest.location"),
        (403, "the server answers 403 Forbidden; expected a publicly readable address"),
        (503, "cannot be fetched (503 Service Unavailable, 2 times; 0 bytes are here)"),
        (200, "found no complete tar file"),
    ],
)
def test_an_address_that_is_no_archive_says_what_to_do(world, status, message):
    params = world.http(Answer(status, {}, b"<html>log in</html>"))
    refused(world, params, re.escape(f"/a.zip: {message}"))


UNSAFE = {
    "parent": ("../evil.png", r"has \.\. in its name and would be written outside"),
    "parent inside": ("images/../../evil.png", r"has \.\. in its name and would be written outside"),
    "absolute": ("/tmp/evil.png", "has an absolute name"),
    "drive": ("C:/evil.png", "has an absolute name"),
    "backslash": ("..\\evil.png", "has a backslash or a NUL byte"),
    "case": ("images/A.png", "clashes with 'images/a\\.png' if case and Unicode form are ignored"),
    "form of Unicode": (
        "images/e\u0301.png",
        "clashes with 'images/\u00e9\\.png' if case and Unicode form are",
    ),
    "too long": (f"images/{'x' * 252}.png", "has a name of more than 255 bytes, which no disk accepts"),
    "file and folder": ("images/a.png/b.png", "is a file and also the folder"),
}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(("name", "reason"), UNSAFE.values(), ids=UNSAFE)
def test_an_unsafe_name_is_refused_and_nothing_is_written(tmp_path, kind, name, reason):
    path = {"zip": write_zip, "tar": write_tar}[kind](
        tmp_path / "a.file", [*PAIR.items(), ("images/\u00e9.png", b"x"), (name, b"x")]
    )
    with pytest.raises(UserError, match=rf"a\.file: entry .*{reason}") as caught:
        ingest(located(kind, path), tmp_path / "deep/raw")
    assert repr(name) in str(caught.value) or name.startswith("images/a.png/")
    assert contents(tmp_path) == {"a.file": path.read_bytes()}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_ENTRIES", 2, "found more than 2 entries; split it"),
        ("MAX_ENTRY_BYTES", 10**5, r"entry 'images/bomb\.png' declares 1000000 bytes, more than 100000"),
        ("RATIO_MATTERS_BYTES", 10**5, r"would grow to \d+ bytes, \d+ times the archive, up to 'images/bomb\.png'"),
    ],
)
def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch, kind, limit, value, message):
    path = write_source(kind, tmp_path, PAIR | {"images/bomb.png": bytes(10**6)})
    monkeypatch.setattr(archives, limit, value)
    with pytest.raises(UserError, match=message):
        ingest(located(kind, path), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("kind", [nightly("zip"), nightly("tar"), nightly("folder"), "http", "s3", "synthetic"])
def test_a_full_disk_is_named_and_nothing_half_written_stays(kind, world, bucket, tmp_path):
    """The limit of a file's size stands for the disk: the same write fails in the same way, and needs no root."""
    files = PAIR | {"images/large.png": os.urandom(10**6)}
    if kind == "s3":
        bucket.put(files)
        params = bucket.params()
    elif kind == "http":
        content = write_zip(tmp_path / "a.zip", files.items()).read_bytes()
        params = world.http(Answer(200, {}, content))
    elif kind == "synthetic":
        synthetic = INGEST.synthetic.model_copy(update={"num_images": 1, "size_px": 512})
        params = INGEST.model_copy(update={"synthetic": synthetic})
    else:
        params = located(kind, write_source(kind, tmp_path, files))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    process = start_ingest(tmp_path, params, limit)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "the disk or quota is full, or the file too large for it (File too large" in said
    assert not (tmp_path / "data/raw").exists()
    assert not list((tmp_path / "data").glob(".raw*"))


def test_what_cannot_fit_is_not_begun(bucket, tmp_path, monkeypatch):
    bucket.put(PAIR)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, 10))
    with pytest.raises(UserError, match=r"MiB are needed and 0 MiB are free"):
        ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    assert bucket.reads() == []
    with pytest.raises(UserError, match=r"MiB are needed and 0 MiB are free"):
        ingest(located("zip", write_zip(tmp_path / "a.zip", PAIR.items())), tmp_path / "raw")


def test_no_source_but_an_address_or_a_bucket_touches_the_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    small = INGEST.synthetic.model_copy(update={"num_images": 2, "size_px": 32})
    for params in (
        located("synthetic", None, synthetic=small),
        located("folder", write_folder(tmp_path / "set", PAIR)),
        located("zip", write_zip(tmp_path / "a.zip", PAIR.items())),
        located("tar", write_tar(tmp_path / "a.tar", PAIR.items())),
    ):
        assert ingest(params, tmp_path / params.kind)["files"]
    with pytest.raises(AssertionError, match="the network was asked"):  # the test can fail
        ingest(located("http", "http://localhost/a.zip"), tmp_path / "http")
