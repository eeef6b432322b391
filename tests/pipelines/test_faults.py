"""What can go wrong with a source: each fault ends with a message that names it, and nothing half-written."""

import csv
import gzip
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines import archives, downloads, storage, web
from pipelines.ingest import ingest
from pipelines.params import Ingest, Prepare, load_params
from pipelines.prepare import prepare
from pipelines.splits import place
from unetpp.errors import UserError

from ..conftest import REPOSITORY
from ..servers import Answer, Server, file_answer, s3_error
from .test_sources import PAIR, link_entry, write_folder, write_zip
from .test_storage import Bucket, bucket

__all__ = ["bucket"]
PARAMS = load_params(REPOSITORY / "params.yaml").ingest


def located(kind: str, location, **changes) -> Ingest:
    return PARAMS.model_copy(update={"kind": kind, "location": str(location)} | changes)


def write_tar(path: Path, entries, mode="w:gz") -> Path:
    """Entries are (name or TarInfo, content)."""
    with tarfile.open(path, mode) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


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

    def s3(self, fault=None, extra=None, **settings) -> Ingest:
        self.bucket.put(PAIR | (extra or {}))
        if fault:
            self.bucket.fault = fault
        return self.bucket.params(**settings)

    def s3_on_read(self, answer: Answer, **settings) -> Ingest:
        return self.s3(lambda request, old: answer if "images/a.png" in request.path else old, **settings)

    def s3_on_list(self, answer: Answer, **settings) -> Ingest:
        return self.s3(lambda request, old: old if request.is_object else answer, **settings)


FAULTS: dict[str, tuple[Callable[[World], Ingest], str]] = {}


def fault(message: str):
    """Add a way to make a fault to the table, with what its message must match."""

    def add(make: Callable[[World], Ingest]):
        FAULTS[make.__name__.replace("_", " ")] = (make, message)
        return make

    return add


@fault(r"a\.zip: entry '\.\./evil\.png' has \.\. in its name and would be written outside")
def zip_slip(world):
    return world.zip(("../evil.png", b"x"))


@fault(r"a\.zip: entry 'images/link\.png' is a link or a device")
def link_in_a_zip(world):
    return world.zip((link_entry(), b"/etc/passwd"))


@fault(r"a\.zip: entries would grow to \d+ bytes, \d+ times the archive, up to 'images/bomb\.png'")
def zip_bomb(world):
    world.patch.setattr(archives, "RATIO_MATTERS_BYTES", 10**6)
    return world.zip(("images/bomb.png", bytes(10**7)))


@fault(r"a\.tar\.gz: entries would grow to \d+ bytes, \d+ times the archive, up to 'images/bomb\.png'")
def tar_bomb(world):
    world.patch.setattr(archives, "RATIO_MATTERS_BYTES", 10**6)
    return world.tar(("images/bomb.png", bytes(10**7)))


@fault(r"a\.tar\.gz: entry 'images/huge\.png' declares 5368709120 bytes, more than 4294967296")
def tar_entry_that_declares_more_than_it_holds(world):
    huge = tarfile.TarInfo("images/huge.png")
    huge.size = 5 * 2**30
    (world.folder / "a.tar.gz").write_bytes(gzip.compress(huge.tobuf()))
    return located("tar", world.folder / "a.tar.gz")


@fault(r"a\.tar\.gz: found no whole tar file \(a header declares \d+ bytes\)")
def tar_header_that_would_fill_the_memory(world):
    header = special("images/a.png", tarfile.XHDTYPE)
    header.size = 2**30
    (world.folder / "a.tar.gz").write_bytes(gzip.compress(header.tobuf() + bytes(2**20)))
    return located("tar", world.folder / "a.tar.gz")


@fault(r"a\.zip: found more than 2 entries; split it")
def too_many_entries(world):
    world.patch.setattr(archives, "MAX_ENTRIES", 2)
    return world.zip(("images/b.png", b"x"))


@fault(r"a\.tar\.gz: entry 'images/link\.png' is a symbolic link, not a file")
def symlink_in_a_tar(world):
    return world.tar((special("images/link.png", tarfile.SYMTYPE, "/etc/passwd"), b""))


@fault(r"a\.tar\.gz: entry 'images/link\.png' is a hard link, not a file")
def hard_link_in_a_tar(world):
    return world.tar((special("images/link.png", tarfile.LNKTYPE, "/etc/passwd"), b""))


@fault(r"a\.tar\.gz: entry 'images/null\.png' is a device or pipe, not a file")
def device_in_a_tar(world):
    return world.tar((special("images/null.png", tarfile.CHRTYPE), b""))


@fault(r"a\.tar\.gz: entry '/tmp/evil\.png' has an absolute name")
def absolute_name_in_a_tar(world):
    return world.tar(("/tmp/evil.png", b"x"))


@fault(r"a\.tar\.gz: entry 'images/\.\./\.\./evil\.png' has \.\. in its name")
def tar_slip(world):
    return world.tar(("images/../../evil.png", b"x"))


@fault(r"a\.tar\.gz: entry 'images/A\.png' clashes with 'images/a\.png' where case is ignored")
def names_in_a_tar_that_differ_by_case(world):
    return world.tar(("images/A.png", b"x"))


@fault(r"a\.tar\.gz: entry 'images/a\.png' clashes with 'images/a\.png'")
def the_same_name_twice_in_a_tar(world):
    return world.tar(("images/a.png", b"x"))


@fault(r"a\.tar: found no whole tar file \(found no end mark at byte \d+: it is cut or damaged\)")
def tar_cut_between_two_entries(world):
    path = write_tar(world.folder / "a.tar", PAIR.items(), "w")
    with tarfile.open(path) as archive:
        cut = archive.getmembers()[1].offset
    path.write_bytes(path.read_bytes()[:cut])
    return located("tar", path)


@fault(r"a\.tar\.gz: found no whole tar file")
def packed_tar_cut(world):
    params = world.tar(("images/b.png", os.urandom(10**5)))
    path = Path(str(params.location))
    path.write_bytes(path.read_bytes()[:-5000])
    return params


@fault(r"a\.tar: found no whole tar file")
def text_in_place_of_a_tar(world):
    (world.folder / "a.tar").write_text("hello")
    return located("tar", world.folder / "a.tar")


@fault(r"a\.tar: found no such file; ingest\.location must be a tar file")
def no_such_tar(world):
    return located("tar", world.folder / "a.tar")


@fault(r"a\.zip: found the sha256 [0-9a-f]{64}; expected 0{64}: it is another file")
def local_archive_of_another_sha256(world):
    return world.zip().model_copy(update={"sha256": "0" * 64})


@fault(r"s3://[^ ]+: key 'set/\.\./evil\.png' has \.\. in its name")
def key_that_leaves_the_folder(world):
    return world.s3_on_list(listing("set/images/a.png", "set/../evil.png"))


@fault(r"s3://[^ ]+: key 'set//etc/evil\.png' has an absolute name")
def absolute_key(world):
    return world.s3_on_list(listing("set/images/a.png", "set//etc/evil.png"))


@fault(r"s3://[^ ]+: key 'set/images/a\\\\b\.png' has a backslash or a NUL byte in its name")
def key_with_a_backslash(world):
    return world.s3(extra={"images/a\\b.png": b"x"})


@fault(r"s3://[^ ]+: key 'set/images/a\\x00\.png' has a backslash or a NUL byte in its name")
def key_with_a_nul_byte(world):
    return world.s3_on_list(listing("set/images/a.png", "set/images/a%00.png"))


@fault(r"s3://[^ ]+: key 'set/images//b\.png' has an empty or a \. part in its name")
def key_with_an_empty_part(world):
    return world.s3(extra={"images//b.png": b"x"})


@fault(r"s3://[^ ]+: key 'set/images/a\.png' clashes with 'set/images/A\.png' where case is ignored")
def keys_that_differ_by_case(world):
    return world.s3(extra={"images/A.png": b"x"})


@fault(r"s3://bucket-\d+/set/images/a\.png: changed while it was downloaded; give the same command again")
def object_that_changes_before_it_is_read(world):
    def change(request, answer):
        if request.is_object:
            return answer
        world.bucket.put({"images/a.png": b"another"})
        return answer

    return world.s3(change)


@fault(r"s3://bucket-\d+/set/images/large\.png: changed while it was downloaded")
def object_that_changes_between_two_parts(world):
    world.patch.setattr(downloads, "PART_BYTES", 1000)

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


@fault(r"images/a\.png: broke off 3 times, last after 10 of \d+ bytes .*expected the whole object")
def object_that_is_cut_again_and_again(world):
    world.patch.setattr(storage, "ATTEMPTS", 3)

    def cut(request, answer):
        if "images/a.png" not in request.path:
            return answer
        return replace(answer, cut=0 if "range" in request.headers else 10)

    return world.s3(cut)


@fault(r"images/a\.png: the store sends 10 bytes where the listing says \d+ .*is it truncated\?")
def object_that_is_shorter_than_listed(world):
    def shorten(request, answer):
        if "images/a.png" not in request.path:
            return answer
        return replace(answer, headers={**answer.headers, "Content-Length": "10"}, body=answer.body[:10])

    return world.s3(shorten)


@fault(r"images/a\.png: the bytes are not those of its ETag [0-9a-f]{32} \(their MD5 differs\)")
def object_with_other_bytes_than_its_etag(world):
    def flip(request, answer):
        if "images/a.png" not in request.path:
            return answer
        return replace(answer, headers=without_checksums(answer), body=bytes(len(answer.body)))

    return world.s3(flip)


@fault(r"images/a\.png: the checksum is not that of the bytes .*ingest\.s3\.checksums=when_required")
def object_with_another_checksum(world):
    def claim(request, answer):
        if "images/a.png" not in request.path:
            return answer
        return replace(answer, headers={**without_checksums(answer), "x-amz-checksum-crc32": "AAAAAA=="})

    return world.s3(claim)


@fault(r"images/a\.png: may not be read \(403 AccessDenied.*expected the permission s3:GetObject")
def no_permission_to_read(world):
    return world.s3_on_read(s3_error(403, "AccessDenied"))


@fault(r"s3://bucket-\d+/set: may not be read \(403 AccessDenied.*expected the permission s3:ListBucket")
def no_permission_to_list(world):
    return world.s3_on_list(s3_error(403, "AccessDenied"))


@fault(r"images/a\.png: the object lies in an archive \(403 InvalidObjectState.*restore it first")
def object_in_an_archive(world):
    return world.s3_on_read(s3_error(403, "InvalidObjectState"))


@fault(r"s3://no-such-bucket/set: no bucket 'no-such-bucket' there \(404 NoSuchBucket.*correct ingest\.location")
def no_such_bucket(world):
    return world.s3().model_copy(update={"location": "s3://no-such-bucket/set"})


@fault(r"s3://bucket-\d+/nothing: found no files; expected images/")
def empty_prefix(world):
    return world.s3(prefix="nothing")


@fault(r"s3://bucket-\d+/set: the store fails, 2 times in a row \(503 SlowDown.*later")
def store_that_stays_busy(world):
    world.patch.setattr(storage, "ATTEMPTS", 2)
    return world.s3_on_list(s3_error(503, "SlowDown"))


@fault(r"s3://bucket-\d+/set: the credentials have expired \(400 ExpiredToken.*renew them")
def expired_credentials(world):
    return world.s3_on_list(s3_error(400, "ExpiredToken"))


@fault(r"the store does not accept the credentials \(403 InvalidAccessKeyId")
def credentials_of_somebody_else(world):
    return world.s3_on_list(s3_error(403, "InvalidAccessKeyId"))


@fault(r"found no whole credentials; expected AWS_ACCESS_KEY_ID .*ingest\.s3\.anonymous=true for a public bucket")
def no_credentials(world):
    world.patch.delenv("AWS_ACCESS_KEY_ID")
    world.patch.delenv("AWS_SECRET_ACCESS_KEY")
    return world.s3()


@fault(r"no profile 'lab' in ~/\.aws; correct ingest\.s3\.profile")
def no_such_profile(world):
    return world.s3(profile="lab")


@fault(r"wrong region \(400 AuthorizationHeaderMalformed.*set ingest\.s3\.region to eu-north-1")
def wrong_region(world):
    return world.s3_on_list(s3_error(400, "AuthorizationHeaderMalformed", Region="eu-north-1"))


@fault(r"http://127\.0\.0\.1:\d+ cannot be reached .*correct ingest\.s3\.endpoint")
def endpoint_where_nobody_listens(world):
    world.patch.setattr(storage, "ATTEMPTS", 1)
    return world.s3(endpoint=f"http://127.0.0.1:{closed_port()}")


@fault(r"the store rejects the request \(501 NotImplemented.*set ingest\.s3\.checksums=when_required")
def store_that_rejects_new_checksums(world):
    return world.s3_on_read(s3_error(501, "NotImplemented"))


@fault(r"/a\.zip: the server answers 404 Not Found; expected an archive there: correct ingest\.location")
def no_such_address(world):
    return http(world, Answer(404, {}, b""))


@fault(r"/a\.zip: the server answers 403 Forbidden; expected an address that all may read")
def address_that_is_not_public(world):
    return http(world, Answer(403, {}, b""))


@fault(r"/a\.zip: found the sha256 [0-9a-f]{64}; expected 0{64}")
def address_of_another_sha256(world):
    return http(world, Answer(200, {}, b"x")).model_copy(update={"sha256": "0" * 64})


@fault(r"/a\.zip: cannot be fetched \(503 Service Unavailable, 2 times; 0 bytes are here\)")
def address_that_stays_busy(world):
    world.patch.setattr(web, "ATTEMPTS", 2)
    return http(world, Answer(503, {}, b""))


@fault(r"/a\.zip: cannot be fetched \(.*refused, 2 times")
def address_where_nobody_listens(world):
    world.patch.setattr(web, "ATTEMPTS", 2)
    return located("http", f"http://127.0.0.1:{closed_port()}/a.zip")


@fault(r"/a\.zip: found no whole tar file")
def address_of_a_page_in_place_of_an_archive(world):
    return http(world, Answer(200, {}, b"<html>log in</html>"))


def http(world: World, answer: Answer) -> Ingest:
    world.bucket.fault = lambda request, old: answer
    return located("http", f"{world.bucket.proxy.url}/a.zip")


def listing(*keys: str) -> Answer:
    """A page with keys that moto's own front would not take, as S3 encodes it."""
    contents = "".join(f'<Contents><Key>{key}</Key><Size>1</Size><ETag>"1"</ETag></Contents>' for key in keys)
    body = f"<ListBucketResult><EncodingType>url</EncodingType>{contents}</ListBucketResult>"
    return Answer(200, {"Content-Type": "application/xml"}, body.encode())


def without_checksums(answer: Answer) -> dict[str, str]:
    return {key: value for key, value in answer.headers.items() if not key.lower().startswith("x-amz-checksum")}


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_nothing_is_written(name, bucket, tmp_path, monkeypatch):
    make, message = FAULTS[name]
    params = make(World(tmp_path, bucket, monkeypatch))
    with pytest.raises(UserError, match=message):
        ingest(params, tmp_path / "data/raw", tmp_path / "data/cache")
    assert [path.name for path in (tmp_path / "data").iterdir()] in ([], ["cache"])
    assert not (tmp_path.parent / "evil.png").exists()


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("kind", ["zip", "tar", "folder", "http", "s3", "synthetic"])
def test_a_full_disk_is_named_and_nothing_half_written_stays(kind, bucket, tmp_path):
    """The limit of a file's size stands for the disk: the same write fails in the same way, and needs no root."""
    files = PAIR | {"images/large.png": os.urandom(10**6)}
    bucket.put(files)
    archive = write_zip(tmp_path / "a.zip", files)
    server = Server(file_answer(archive.read_bytes()))
    locations = {
        "zip": archive,
        "tar": write_tar(tmp_path / "a.tar", files.items()),
        "folder": write_folder(tmp_path / "set", files),
        "http": f"{server.url}/a.zip",
        "s3": bucket.params().location,
        "synthetic": None,
    }
    params = bucket.params().model_copy(update={"kind": kind, "location": str(locations[kind])}).model_dump()
    params["synthetic"] |= {"num_images": 1, "size_px": 512}
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text()) | {"ingest": params}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    code = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.argv[1:] = ['--out', 'data/raw', '--cache', 'data/cache']\n"
        "runpy.run_module('pipelines.ingest', run_name='__main__')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    server.close()
    assert done.returncode == 2, done.stderr
    assert "the disk or quota is full, or the file too large for it (File too large" in done.stderr
    assert not (tmp_path / "data/raw").exists()
    assert not list((tmp_path / "data").glob(".raw*"))


def test_what_cannot_fit_is_not_begun(bucket, tmp_path, monkeypatch, aws):
    bucket.put(PAIR)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10))
    with pytest.raises(UserError, match=r"MiB are needed and 0 MiB are free"):
        ingest(bucket.params(), tmp_path / "raw", tmp_path / "cache")
    assert bucket.reads() == []
    with pytest.raises(UserError, match=r"MiB are needed and 0 MiB are free"):
        ingest(located("zip", write_zip(tmp_path / "a.zip", PAIR)), tmp_path / "raw")


def test_no_source_but_an_address_or_a_bucket_touches_the_network(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    small = PARAMS.synthetic.model_copy(update={"num_images": 2, "size_px": 32})
    for params in (
        located("synthetic", None, synthetic=small),
        located("folder", write_folder(tmp_path / "set", PAIR)),
        located("zip", write_zip(tmp_path / "a.zip", PAIR)),
        located("tar", write_tar(tmp_path / "a.tar", PAIR.items())),
    ):
        assert ingest(params, tmp_path / params.kind)["files"]
    with pytest.raises(AssertionError, match="the network was asked"):  # the test can fail
        ingest(located("http", "http://localhost/a.zip"), tmp_path / "http")


def test_every_message_in_the_guides_table_is_one_that_the_code_says():
    rows = re.findall(r"^\| `([^`]+)` \|", (REPOSITORY / "docs/data.md").read_text(), re.MULTILINE)
    names = (
        "archives",
        "downloads",
        "files",
        "layouts",
        "params",
        "sources",
        "storage",
        "web",
        "groups",
        "splits",
        "prepare",
        "salts",
    )
    # Messages are broken over lines of code; the joints go.
    code = "".join((REPOSITORY / f"pipelines/{name}.py").read_text() for name in names)
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    assert len(rows) > 20
    for words in rows:
        assert words in code, words


# Faults of splits. Up to the line of dashes stands what the faults of files share with them.
SIDE = 24
PREPARE = load_params(REPOSITORY / "params.yaml").prepare.model_copy(update={"size": None})


def noise(key: str, channels: int = 3) -> np.ndarray:
    """A picture that no other key gives."""
    generator = np.random.default_rng(list(key.encode()))
    return generator.integers(0, 255, (SIDE, SIDE, channels), np.uint8)


def block(value: int = 1) -> np.ndarray:
    """A mask with a square of a value."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:15, 6:17] = value
    return mask


@dataclass
class RawWorld:
    """What a fault of the raw folder is made of. `together`, `apart`: ids that must, or must not, share a group."""

    folder: Path
    patch: pytest.MonkeyPatch
    together: list[tuple[str, str]] = field(default_factory=list)
    apart: list[tuple[str, str]] = field(default_factory=list)

    @property
    def source(self) -> Path:
        return self.folder / "source"

    def good(self, num: int = 40) -> None:
        """Sound pairs 0000 ... of which a fault is the exception, and `odd`, to be spoilt."""
        for id in [*(f"{number:04}" for number in range(num)), "odd"]:
            self.image(f"{id}.png", noise(id))
            self.mask(f"{id}.png", block())

    def image(self, name: str, pixels: np.ndarray) -> None:
        self._write(self.source / "images" / name, pixels)

    def mask(self, name: str, pixels: np.ndarray) -> None:
        self._write(self.source / "masks" / name, pixels)

    @staticmethod
    def _write(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


RAW_FAULTS: dict[str, tuple[Callable[[RawWorld], Prepare], str, str]] = {}


def raw_fault(outcome: str, message: str):
    """Add a way to spoil a raw folder: prepare ends in "error" with a message, or goes by a "policy" of the docs."""

    def add(make: Callable[[RawWorld], Prepare]):
        RAW_FAULTS[make.__name__.replace("_", " ")] = (make, outcome, message)
        return make

    return add


def with_params(**changes) -> Prepare:
    return Prepare.model_validate(PREPARE.model_dump() | changes)


# ----------------------------------------------------------------------------------------------------------------------


def with_groups(**changes) -> Prepare:
    return with_params(groups=PREPARE.groups.model_dump() | changes)


@raw_fault("policy", "join one group")
def the_same_picture_under_two_names(world):
    world.good()
    for number in range(20):  # some would else stand in two splits
        world.image(f"{number:04} again.png", noise(f"{number:04}"))
        world.mask(f"{number:04} again.png", block())
        world.together.append((f"{number:04}", f"{number:04} again"))
    return PREPARE


@raw_fault("policy", "turned, mirrored")
def the_same_picture_mirrored_and_dimmed_under_another_name(world):
    world.good()
    for number in range(20):
        world.image(f"{number:04} again.png", np.ascontiguousarray(noise(f"{number:04}")[::-1] // 8))
        world.mask(f"{number:04} again.png", np.ascontiguousarray(block()[::-1]))
        world.together.append((f"{number:04}", f"{number:04} again"))
    return PREPARE


@raw_fault("policy", "without any contrast is like no other")
def many_black_pictures(world):
    world.good()
    for number in range(5):
        world.image(f"black{number}.png", np.zeros((SIDE, SIDE, 3), np.uint8))
        world.mask(f"black{number}.png", block(0))
    world.apart += [("black0", f"black{number}") for number in range(1, 5)]
    return PREPARE


@raw_fault("error", r"(?s)found \d+ groups or pairs of images that stand in two splits; .*are the same pixels")
def the_same_picture_in_two_splits(world):
    the_same_picture_under_two_names(world)
    return with_params(near_duplicates=None)


@raw_fault("policy", "stays together whatever")
def a_patient_of_many_images(world):
    world.good()
    for number in range(30):
        world.image(f"p7_{number}.png", noise(f"p7_{number}"))
        world.mask(f"p7_{number}.png", block())
        world.together.append(("p7_0", f"p7_{number}"))
    return with_groups(pattern=r"^(p\d+|.*)")


@raw_fault("error", r"the group 'p7' of 30 images stands in .*: p7_\d+ in \w+, p7_\d+ in \w+")
def a_patient_in_two_splits_by_a_mistake_in_the_rule(world):
    params = a_patient_of_many_images(world)
    world.patch.setattr(
        "pipelines.prepare.place", lambda members, params: place([[str(n)] for n in range(len(members))], params)
    )
    return params


@raw_fault("error", r"patients\.csv: line 3: found '0001' in group 'p2' and before in 'p1'; expected one group an id")
def an_image_of_two_patients(world):
    world.good()
    (world.folder / "patients.csv").write_text("id,group\n0001,p1\n0001,p2\n")
    return with_groups(table=str(world.folder / "patients.csv"))


@raw_fault("error", r"patients\.csv: found no row for 2 of 41 ids: 0039, odd; expected a row id,group for every image")
def a_table_without_some_of_the_ids(world):
    world.good()
    rows = [f"{number:04},p{number // 3}\n" for number in range(39)]
    (world.folder / "patients.csv").write_text("id,group\n" + "".join(rows))
    return with_groups(table=str(world.folder / "patients.csv"))


@raw_fault(
    "error", r"prepare\.groups\.pattern: found the id 'odd', in which .* matches nothing; expected a group for ev"
)
def an_id_that_the_pattern_does_not_match(world):
    world.good()
    return with_groups(pattern=r"^(\d\d)")


@pytest.mark.parametrize("name", RAW_FAULTS)
def test_a_fault_of_splits_is_named_or_decided_by_policy(name, tmp_path, monkeypatch):
    make, outcome, message = RAW_FAULTS[name]
    world = RawWorld(tmp_path, monkeypatch)
    params = make(world)
    ingest(located("folder", world.source), tmp_path / "raw")
    if outcome == "error":
        with pytest.raises(UserError, match=message):
            prepare(params, tmp_path / "raw", tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))
        return
    prepare(params, tmp_path / "raw", tmp_path / "out")
    with (tmp_path / "out/split.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    for one, other in world.together:
        assert [rows[one][key] for key in ("group", "split")] == [rows[other][key] for key in ("group", "split")]
    assert all(rows[one]["group"] != rows[other]["group"] for one, other in world.apart)
    assert message in " ".join((REPOSITORY / "docs/data.md").read_text().split())
