"""The table of faults: what can go wrong with a source, with files and with masks.

A fault of a source ends with a message that names it, and nothing half-written. A fault of the files (`raw_fault`)
ends so, or sets the sample aside with file, reason and fix, or is read by a policy that docs/data.md tells.
"""

import csv
import gzip
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zlib
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.core.data_sections import Ingest, Prepare
from pipelines.core.params import load_params
from pipelines.dataset.splits import SPLITS, place
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.storage import archives, http_download, s3, s3_download
from tests.conftest import REPOSITORY
from tests.pipelines.storage.test_s3 import Bucket, bucket
from tests.pipelines.storage.test_sources import PAIR, link_entry, write_folder, write_zip
from tests.servers import Answer, Server, file_answer, s3_error
from tests.unetpp.images.test_decode import png, png_chunk
from tests.unetpp.images.tiffs import write_tiff
from unetpp.data.arrow_split import Split
from unetpp.errors import UserError

__all__ = ["bucket"]
ALL = load_params(REPOSITORY / "params.yaml")
PARAMS = ALL.ingest
PREPARE = ALL.prepare.model_copy(update={"size": None})
SIDE = 24


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
    expected: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    together: list[tuple[str, str]] = field(default_factory=list)  # ids that must share a group and a split
    apart: list[tuple[str, str]] = field(default_factory=list)  # ids that must not share a group

    @property
    def source(self) -> Path:
        """The user's folder of a raw fault."""
        return self.folder / "source"

    def good(self, num: int = 40, num_classes: int = 2) -> None:
        """Sound pairs 0000 ... of which a fault is the exception, and `odd`, to be spoilt."""
        for id in [*(f"{number:04}" for number in range(num)), "odd"]:
            self.image(f"{id}.png", noise(id))
            self.mask(f"{id}.png", block(num_classes - 1))

    def image(self, name: str, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
        return self._write(self.source / "images" / name, pixels, mode, options)

    def mask(self, name: str, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
        return self._write(self.source / "masks" / name, pixels, mode, options)

    @staticmethod
    def _write(path: Path, pixels: np.ndarray, mode: str | None, options: dict) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels)
        (picture.convert(mode) if mode else picture).save(path, **options)
        return path

    def replace_image(self, name: str, *arguments, **options) -> Path:
        (self.source / "images/odd.png").unlink()
        return self.image(name, *arguments, **options)

    def replace_mask(self, name: str, *arguments, **options) -> Path:
        (self.source / "masks/odd.png").unlink()
        return self.mask(name, *arguments, **options)

    def expect(self, image: np.ndarray, mask: np.ndarray, id: str = "odd") -> None:
        """What the policy makes of a sample: image (H, W, 3) and mask (H, W)."""
        self.expected[id] = image, mask

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


FAULTS: dict[str, tuple[Callable[[World], Ingest], str | None]] = {}


def fault(message: str | None):
    """Add a way to make a fault to the table, with what its message must match; None for one that passes by itself."""

    def add(make: Callable[[World], Ingest]):
        FAULTS[make.__name__.replace("_", " ")] = (make, message)
        return make

    return add


@fault(None)
def store_that_fails_three_times_and_then_answers(world):
    answers = iter([s3_error(503, "SlowDown")] * 3)
    return world.s3(lambda request, old: next(answers, old) if "images/a.png" in request.path else old)


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


@fault(r"images/a\.png: broke off 3 times, last after 10 of \d+ bytes .*expected the whole object")
def object_that_is_cut_again_and_again(world):
    world.patch.setattr(s3, "ATTEMPTS", 3)

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
    world.patch.setattr(s3, "ATTEMPTS", 2)
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
    world.patch.setattr(s3, "ATTEMPTS", 1)
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
    world.patch.setattr(http_download, "ATTEMPTS", 2)
    return http(world, Answer(503, {}, b""))


@fault(r"/a\.zip: cannot be fetched \(.*refused, 2 times")
def address_where_nobody_listens(world):
    world.patch.setattr(http_download, "ATTEMPTS", 2)
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


def noise(key: str, channels: int = 3, dtype=np.uint8) -> np.ndarray:
    """A picture that no other key gives."""
    generator = np.random.default_rng(list(key.encode()))
    shape = (SIDE, SIDE, channels) if channels > 1 else (SIDE, SIDE)
    high = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 2**15
    return generator.integers(0, high, shape).astype(dtype)


def block(value: int = 1) -> np.ndarray:
    """A mask with a square of a value."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:15, 6:17] = value
    return mask


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels] * 3, axis=2)


RAW_FAULTS: dict[str, tuple[Callable[[World], Prepare], str, str]] = {}


def raw_fault(outcome: str, message: str):
    """Add a way to spoil a raw folder to the table.

    The function makes `world.source` and returns the params of the stage. It ends, by `outcome`, in
    "error": prepare is refused with what `message` matches, and nothing is written;
    "quarantine": the sample `odd` alone is set aside, and one of its rows, "file: reason: fix", matches `message`;
    "policy": every sample is read, those of `world.expect` as it says, and docs/data.md holds the words `message`.
    """
    assert outcome in ("error", "quarantine", "policy")

    def add(make: Callable[[World], Prepare]):
        RAW_FAULTS[make.__name__.replace("_", " ")] = (make, outcome, message)
        return make

    return add


def with_params(**changes) -> Prepare:
    return Prepare.model_validate(PREPARE.model_dump() | changes)


@raw_fault("error", r"masks/0000\.png: found a mask that looks like a picture, and 0000\.png in images/ looks")
def images_and_masks_swapped(world):
    world.good()
    (world.source / "images").rename(world.source / "other")
    (world.source / "masks").rename(world.source / "images")
    (world.source / "other").rename(world.source / "masks")
    return PREPARE


@raw_fault(
    "quarantine", r"^masks/odd\.png: found a mask that looks like a pict.*the two swapped\?.*: exchange the two$"
)
def one_image_and_its_mask_swapped(world):
    world.good()
    world.image("odd.png", block(255))
    world.mask("odd.png", noise("odd", 1))
    return PREPARE


@raw_fault("quarantine", r"^masks/odd\.png: found a mask of 24x23 px for an image of 24x24 px; .*: export")
def mask_off_by_one_pixel(world):
    world.good()
    world.mask("odd.png", block()[1:])
    return PREPARE


@raw_fault("policy", "foreground where it is not 0")
def mask_of_0_and_255_where_there_is_one_class(world):
    world.good()
    world.mask("odd.png", block(255))
    world.expect(noise("odd"), block(1))
    return PREPARE


@raw_fault("quarantine", r"^masks/odd\.png: found the mask values 0 and 255 alone.*: set prepare\.num_classes to 1")
def mask_of_0_and_255_where_there_are_classes(world):
    world.good(num_classes=3)
    world.mask("odd.png", block(255))
    return with_params(num_classes=3)


@raw_fault("quarantine", r"^masks/odd\.png: found the mask value 7; expected 0 to 2: correct the mask")
def mask_value_off_the_list(world):
    world.good(num_classes=3)
    world.mask("odd.png", block(7))
    return with_params(num_classes=3)


@raw_fault("quarantine", r"^masks/odd\.png: found a mask in colours; .*: map each colour to a number")
def mask_in_colours(world):
    world.good()
    colours = np.zeros((SIDE, SIDE, 3), np.uint8)
    colours[4:9], colours[9:15] = (255, 0, 0), (0, 255, 0)
    world.mask("odd.png", colours)
    return PREPARE


@raw_fault("policy", "alpha is dropped")
def image_with_alpha(world):
    world.good()
    world.image("odd.png", noise("odd", 4))
    world.expect(noise("odd", 4)[:, :, :3], block())
    return PREPARE


@raw_fault("policy", "alpha is dropped")
def grey_image_with_alpha(world):
    world.good()
    pixels = noise("odd", 2)
    world.image("odd.png", pixels)
    world.expect(grey(pixels[:, :, 0]), block())
    return PREPARE


@raw_fault("policy", "replaced by its colours")
def image_with_a_palette_and_alpha(world):
    world.good()
    indices = noise("odd", 1) % 4
    colours = np.array([[0, 0, 0], [250, 10, 9], [3, 255, 0], [9, 9, 9]], np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette(colours.ravel().tolist())
    picture.save(world.source / "images/odd.png", transparency=bytes([0, 100, 200, 255]))
    world.expect(colours[indices], block())
    return PREPARE


@raw_fault("policy", "the index and not the colour")
def mask_with_a_palette_and_alpha(world):
    world.good(num_classes=3)
    picture = Image.fromarray(block(2)).convert("P")
    picture.putdata(block(2).ravel().tolist())
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(world.source / "masks/odd.png", transparency=bytes([0, 100, 200]))
    world.expect(noise("odd"), block(2))
    return with_params(num_classes=3)


@raw_fault("policy", "8 and 16 bits a channel")
def image_of_16_bits(world):
    world.good()
    pixels = noise("odd", 1, np.uint16)
    world.image("odd.png", pixels)
    world.expect(grey(pixels), block())
    return PREPARE


@raw_fault("policy", "its least and greatest value are its range")
def image_of_floats(world):
    world.good()
    pixels = noise("odd", 1, np.float32) / 64 - 100
    world.replace_image("odd.tif", pixels)
    world.expect(grey(pixels), block())
    return PREPARE


@raw_fault("quarantine", r"^images/odd\.tif: found 1 of 576 values that are NaN, infinite .*: replace them")
def image_of_floats_with_a_hole(world):
    world.good()
    pixels = noise("odd", 1, np.float32)
    pixels[3, 4] = np.nan
    world.replace_image("odd.tif", pixels)
    return PREPARE


@raw_fault("quarantine", r"^images/odd\.png: found the orientation tag 6.*: turn the pixels themselves")
def image_with_exif_6(world):
    world.good()
    exif = Image.Exif()
    exif[274] = 6
    world.image("odd.png", noise("odd"), exif=exif)
    return PREPARE


@raw_fault("quarantine", r"^masks/odd\.png: found the orientation tag 6.*of image and mask alike")
def mask_with_exif_6(world):
    world.good()
    exif = Image.Exif()
    exif[274] = 6
    world.mask("odd.png", block(), exif=exif)
    return PREPARE


@raw_fault("policy", "grey is repeated")
def grey_and_colour_mixed(world):
    world.good()
    world.image("odd.png", noise("odd", 1))
    world.expect(grey(noise("odd", 1)), block())
    world.expect(noise("0003"), block(), id="0003")
    return PREPARE


@raw_fault("policy", "an image without objects")
def empty_mask(world):
    world.good()
    world.mask("odd.png", block(0))
    world.expect(noise("odd"), block(0))
    return PREPARE


@raw_fault("quarantine", r"^masks/odd\.jpg: found a JPEG mask, whose values compression has changed.*: export")
def jpeg_mask(world):
    world.good()
    world.replace_mask("odd.jpg", block(255))
    return PREPARE


@raw_fault("quarantine", r"^images/odd\.png: found a broken file .*: fetch it again or remove it")
def truncated_image(world):
    world.good()
    path = world.source / "images/odd.png"
    path.write_bytes(path.read_bytes()[:-500])
    return PREPARE


@raw_fault("quarantine", r"^masks/odd\.tif: found a broken file .*: fetch it again or remove it")
def truncated_mask(world):
    world.good()
    path = world.replace_mask("odd.tif", block())
    path.write_bytes(path.read_bytes()[:-500])
    return PREPARE


@raw_fault("quarantine", r"^images/odd\.png: found an empty file \(0 bytes\); .*: fetch it again or remove it")
def zero_byte_image(world):
    world.good()
    (world.source / "images/odd.png").write_bytes(b"")
    return PREPARE


@raw_fault("quarantine", r"^masks/odd\.png: found an empty file \(0 bytes\)")
def zero_byte_mask(world):
    world.good()
    (world.source / "masks/odd.png").write_bytes(b"")
    return PREPARE


@raw_fault("quarantine", r"^images/odd\.png: found no image but a file that begins with b'I am text'.*: save it as one")
def text_named_png(world):
    world.good()
    (world.source / "images/odd.png").write_text("I am text")
    return PREPARE


@raw_fault(
    "quarantine",
    r"^images/odd\.png: found too many pixels \(50000x50000 px\).*: cut it into tiles",
)
def png_of_50000_by_50000(world):
    world.good()
    (world.source / "images/odd.png").write_bytes(png(50_000, 50_000, 8, bytes(10**6)))
    return PREPARE


@raw_fault("quarantine", r"^images/odd\.tif: found too many pixels \(4000000000x4000000000 px\)")
def tiff_that_declares_more_than_there_is_memory(world):
    world.good()
    path = world.replace_image("odd.tif", noise("odd"))
    write_tiff(path, noise("odd"), tags={256: 4 * 10**9, 257: 4 * 10**9})
    return PREPARE


@raw_fault("quarantine", r"^images/odd\.png: found 2 MiB; expected at most prepare\.max_file_mib = 1")
def file_that_is_too_large(world):
    world.good()
    path = world.source / "images/odd.png"
    path.write_bytes(path.read_bytes() + bytes(2**21))
    return with_params(max_file_mib=1)


@raw_fault("quarantine", r"^images/odd\.png: found a broken file \(Decompressed data too large")
def bomb_inside_a_png(world):
    world.good()
    path = world.source / "images/odd.png"
    whole = path.read_bytes()
    bomb = png_chunk(b"zTXt", b"name\0\0" + zlib.compress(bytes(2**26)))
    path.write_bytes(whole[:33] + bomb + whole[33:])
    return PREPARE


@raw_fault("quarantine", r"^images/Odd\.png: names differ only by case or suffix: .*images/odd\.png: rename one")
def ids_that_differ_by_case(world):
    world.good()
    world.image("Odd.png", noise("another"))
    return PREPARE


@raw_fault("quarantine", r"^images/odd\.png: no mask masks/odd\.png: add it or remove the image")
def image_without_a_mask(world):
    world.good()
    (world.source / "masks/odd.png").unlink()
    return PREPARE


@raw_fault("quarantine", r"^images/odd\.tif: found 3 pages; expected one: save each page .*prepare\.pages to slices")
def volume_where_pages_are_refused(world):
    world.good()
    write_tiff(world.replace_image("odd.tif", noise("odd")), *(noise(f"odd{n}") for n in range(3)))
    return PREPARE


@raw_fault("policy", "each page is a sample")
def volume_where_pages_are_slices(world):
    world.good()
    write_tiff(world.replace_image("odd.tif", noise("odd")), *(noise(f"odd{n}", 1, np.uint16) for n in (1, 2, 3)))
    write_tiff(world.replace_mask("odd.tif", block()), block(5), block(0), block(9))
    for page, value in ((1, 1), (2, 0), (3, 1)):
        world.expect(grey(noise(f"odd{page}", 1, np.uint16)), block(value), id=f"odd@{page:04}")
    return with_params(pages="slices")


@raw_fault("quarantine", r"^masks/odd\.tif: found 2 pages for the 3 pages of odd\.tif; .*: export")
def volume_with_fewer_masks_than_pages(world):
    world.good()
    write_tiff(world.replace_image("odd.tif", noise("odd")), *(noise(f"odd{n}", 1) for n in range(3)))
    write_tiff(world.replace_mask("odd.tif", block()), block(), block())
    return with_params(pages="slices")


@raw_fault("policy", "the later class wins")
def classes_that_overlap(world):
    world.good()
    whole, part = block(255), block(255)
    part[:9] = 0
    for id in [path.stem for path in (world.source / "images").iterdir()]:
        world.mask(f"cell/{id}.png", whole)
        world.mask(f"nucleus/{id}.png", part)
        (world.source / f"masks/{id}.png").unlink()
    world.expect(noise("odd"), np.maximum((whole > 0) * 1, (part > 0) * 2).astype(np.uint8))
    return with_params(num_classes=3, classes=["cell", "nucleus"])


@raw_fault("error", r"found a folder of masks for each of nucleus; .*: set prepare\.classes=")
def classes_that_are_not_named(world):
    world.good()
    (world.source / "masks").rename(world.source / "nucleus")
    (world.source / "masks").mkdir()
    (world.source / "nucleus").rename(world.source / "masks/nucleus")
    return PREPARE


def coco(world: World, **odd) -> Prepare:
    """The good pairs as a COCO set, in which the entry and the only annotation of `odd` are changed."""
    world.good()
    shutil.rmtree(world.source / "masks")
    names = sorted(path.name for path in (world.source / "images").iterdir())
    images = [{"id": n, "file_name": name, "width": SIDE, "height": SIDE} for n, name in enumerate(names)]
    square = [[6, 4, 17, 4, 17, 15, 6, 15]]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "segmentation": square} for n in range(len(names))]
    for row in (images[-1], annotations[-1]):
        row |= {key: value for key, value in odd.items() if key in row}
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}
    (world.source / "annotations.json").write_text(json.dumps(content))
    return PREPARE


@raw_fault("policy", "polygons or run lengths")
def coco_set(world):
    world.expect(noise("odd"), block())
    return coco(world)


@raw_fault("quarantine", r"^annotations\.json: found annotation 40 of odd\.png with no segmentation.*: correct")
def coco_annotation_without_a_segmentation(world):
    return coco(world, segmentation=[])


@raw_fault("quarantine", r"^annotations\.json: found annotations for 9x24 px of odd\.png of 24x24 px")
def coco_annotations_of_another_size(world):
    return coco(world, width=9)


@raw_fault("error", r"annotations\.json: found 1 categories; expected 2, as prepare\.num_classes = 3")
def coco_categories_that_are_not_the_classes(world):
    return coco(world).model_copy(update={"num_classes": 3})


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


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_nothing_is_written(name, bucket, tmp_path, monkeypatch):
    make, message = FAULTS[name]
    params = make(World(tmp_path, bucket, monkeypatch))
    if message is None:
        manifest = ingest(params, tmp_path / "data/raw", tmp_path / "data/cache")
        assert [file["key"] for file in manifest["files"]] == sorted(PAIR)
        return
    with pytest.raises(UserError, match=message):
        ingest(params, tmp_path / "data/raw", tmp_path / "data/cache")
    assert [path.name for path in (tmp_path / "data").iterdir()] in ([], ["cache"])
    assert not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize("name", RAW_FAULTS)
def test_a_fault_of_the_files_is_named_or_read_by_policy(name, tmp_path, monkeypatch):
    make, outcome, message = RAW_FAULTS[name]
    world = World(tmp_path, None, monkeypatch)  # pyright: ignore[reportArgumentType]
    params = make(world)
    ingest(located("folder", world.source), tmp_path / "raw")
    if outcome == "error":
        with pytest.raises(UserError, match=message):
            prepare(params, tmp_path / "raw", tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))
        return
    prepare(params, tmp_path / "raw", tmp_path / "out")
    with (tmp_path / "out/quarantine.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    prepared = {}
    for split in (Split(tmp_path / f"out/{name}.arrow") for name in SPLITS):
        prepared |= {id: split[index] for index, id in enumerate(split.ids)}
    assert {f"{number:04}" for number in range(40)} <= set(prepared)
    assert all(row["fix"] for row in rows)
    if outcome == "quarantine":
        assert {row["id"].casefold() for row in rows} == {"odd"}
        assert any(re.search(message, f"{row['file']}: {row['reason']}: {row['fix']}") for row in rows), rows
        assert not {id for id in prepared if id.startswith("odd")}
    else:
        assert rows == []
        for id, (image, mask) in world.expected.items():
            assert prepared[id][0].dtype == image.dtype
            assert np.array_equal(prepared[id][0], image)
            assert np.array_equal(prepared[id][1], mask)
        with (tmp_path / "out/split.csv").open(newline="", encoding="utf-8") as file:
            places = {row["id"]: (row["group"], row["split"]) for row in csv.DictReader(file)}
        assert all(places[one] == places[other] for one, other in world.together)
        assert all(places[one][0] != places[other][0] for one, other in world.apart)
        assert message in " ".join((REPOSITORY / "docs/data.md").read_text().split())


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
    # Messages are broken over lines of code; the joints go.
    files = sorted(path for package in ("pipelines", "unetpp") for path in (REPOSITORY / package).rglob("*.py"))
    code = "".join(path.read_text() for path in files)
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    assert len(rows) > 20
    for words in rows:
        assert words in code, words
