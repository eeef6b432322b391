"""Images in files or under s3://bucket/prefix: found by listing, and fetched one by one."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.core.full_disk import disk_errors
from pipelines.core.params import load_params
from pipelines.core.sections.ingest import S3
from pipelines.storage.naming.layout_names import is_junk
from pipelines.storage.naming.templates import is_picture
from pipelines.storage.s3 import Object, ObjectError, Store
from unetpp.errors import UserError
from unetpp.images.pictures import SUFFIXES

SCHEME = "s3://"
CONNECTIONS = 16  # at once, from one process to one store


@dataclass(frozen=True, slots=True)
class Item:
    """An image to be predicted, as it was listed. Objects have an ETag, files have none."""

    address: str
    size: int
    modified: float  # seconds since 1970
    etag: str = ""

    @property
    def stem(self) -> str:
        return PurePosixPath(self.address).stem

    @property
    def bucket(self) -> str:
        """The bucket of an object."""
        return _split(self.address)[0]

    def fetch(self, folder: Path, store: Store | None) -> Path:
        """The image as a file: the file itself, or a copy of the object in the new folder `folder`.

        Args:
            store: for an object, the store of its bucket.

        Raises:
            ObjectError: the object changed since it was listed, is gone or damaged, or may not be read.
            UserError: the store does not answer.
        """
        if store is None:
            return Path(self.address)
        key = _split(self.address)[1]
        facts, pieces = store.read(Object(key, self.size, self.etag), 0, self.size)
        path, found = folder / f"image{PurePosixPath(key).suffix}", hashlib.md5(usedforsecurity=False)
        with disk_errors(folder.parent):
            folder.mkdir()
            with path.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                    found.update(piece)
        if facts.md5 and facts.md5 != found.hexdigest():
            raise ObjectError(
                f"{self.address}: the bytes do not match the ETag {self.etag} (their MD5 differs); rerun the "
                "command; if this recurs (the store's ETags are not MD5 sums), set ingest.s3.checksums=when_required"
            )
        return path


class Stores:
    """The stores of buckets, each opened once."""

    def __init__(self, s3: S3):
        self._s3, self._opened = s3, dict[str, Store]()

    def of(self, item: Item) -> Store | None:
        """The store of an object; None for a file. Call this from one thread; several may use the store."""
        if not item.etag:
            return None
        if item.bucket not in self._opened:
            self._opened[item.bucket] = open_store(f"{SCHEME}{item.bucket}", self._s3)
        return self._opened[item.bucket]


def open_store(address: str, s3: S3) -> Store:
    return Store(s3, address, CONNECTIONS, "the address")


def _split(address: str) -> tuple[str, str]:
    """Bucket, and key or prefix."""
    bucket, _, key = address.removeprefix(SCHEME).partition("/")
    return bucket, key


def is_address(text: str | Path) -> bool:
    """Whether a place is in a bucket."""
    return str(text).startswith(SCHEME)


def s3_settings() -> S3:
    """How stores are accessed: `ingest.s3` of a params.yaml in this folder, then the environment."""
    if Path("params.yaml").is_file():
        s3 = load_params().ingest.s3
    else:
        plain = {"region": None, "profile": None, "anonymous": False, "requester_pays": False}
        s3 = S3(endpoint=None, checksums="when_supported", **plain)
    # boto3 reads these itself, but on another machine they are not set.
    endpoint = s3.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return s3.model_copy(update={"endpoint": endpoint or None})


def check_address(address: str) -> None:
    """Refuse an address without a bucket.

    Raises:
        UserError: the address names no bucket.
    """
    if not re.fullmatch(r"s3://[^/]+(/.*)?", address):
        raise UserError(f"{address}: found no bucket in this address; expected s3://bucket/prefix")


def find_objects(address: str, s3: S3) -> list[Item]:
    """The images under a prefix, or the single image that an address names.

    Raises:
        UserError: no image there, or a store that cannot be listed.
    """
    check_address(address)
    store, key = open_store(address, s3), _split(address)[1]
    found = list(_pictures(store, store.list()))
    if not found and is_picture(PurePosixPath(key)) and (one := store.find(key)):
        found = [_item(store, one)]
    if not found:
        raise UserError(
            f"{address}: found no image there; expected objects under this prefix that end in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return found


def _pictures(store: Store, objects: Iterable[Object]) -> Iterator[Item]:
    for one in objects:
        name = PurePosixPath(one.key.removeprefix(store.prefix))
        if is_picture(name) and not is_junk(name):
            yield _item(store, one)


def _item(store: Store, one: Object) -> Item:
    return Item(store.name(one.key), one.size, one.modified, one.etag)


def item_of(file: Path) -> Item:
    """The item for a file, as the file is now."""
    facts = file.stat()
    # A file that was moved or copied here with its old time is new here.
    return Item(str(file), facts.st_size, max(facts.st_mtime, facts.st_ctime))
