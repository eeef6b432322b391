"""Zip and tar files, which are untrusted: the name of every entry is checked before the first byte is written."""

import bz2
import gzip
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from pipelines.core.full_disk import disk_errors
from pipelines.storage.folder_walk import MAX_ENTRIES
from pipelines.storage.naming.layout_names import is_junk
from pipelines.storage.naming.templates import composed
from unetpp.errors import UserError

# The largest public set of this kind (BBBC038) has 30,000 entries and 400 MB.
MAX_NAME_BYTES = 255  # of a file or folder, on any disk
MAX_ENTRY_BYTES = 4 * 2**30
MAX_TOTAL_BYTES = 256 * 2**30
# Deflate cannot pass 1032; raw masks come near 100. Small archives may be anything.
MAX_RATIO = 200
RATIO_MATTERS_BYTES = 2**30
# A tar stores long names in text blocks before an entry; tarfile reads such a block as a whole.
MAX_READ_BYTES = 2**24

BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
DAMAGED = (*BROKEN, EOFError, NotImplementedError, OSError, UnicodeError)
UNPACK = "unpack it yourself and set ingest.kind=folder"


class Names:
    """The names of an archive or a bucket: refuses those that could write elsewhere or over another file."""

    def __init__(self, where: str, what: str, advice: str):
        self._where, self._what, self._advice = where, what, advice
        self._seen: dict[str, str] = {}  # files by name, without case and Unicode form
        self._files: list[PurePosixPath] = []

    def refuse(self, name: str, reason: str) -> UserError:
        return UserError(f"{self._where}: {self._what} {name!r} {reason}; {self._advice}")

    def check(self, name: str, shown: str | None = None) -> PurePosixPath:
        """The path of an entry, a file or a folder; `shown` is its full name, if `name` is a part of that.

        Raises:
            UserError: it would be written outside, or its name is illegal.
        """
        shown = shown or name
        if "\0" in name or "\\" in name:
            raise self.refuse(shown, "has a backslash or a NUL byte in its name")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name):
            raise self.refuse(shown, "has an absolute name")
        if ".." in name.split("/"):
            raise self.refuse(shown, "has .. in its name and would be written outside")
        if any(len(part.encode(errors="surrogatepass")) > MAX_NAME_BYTES for part in name.split("/")):
            raise self.refuse(shown, f"has a name of more than {MAX_NAME_BYTES} bytes, which no disk accepts")
        return PurePosixPath(name)

    def add(self, path: PurePosixPath, name: str) -> None:
        """Add a file.

        Raises:
            UserError: it clashes with another one if case is ignored.
        """
        key = _folded(path)
        if key in self._seen:
            raise UserError(
                f"{self._where}: {self._what} {name!r} clashes with {self._seen[key]!r} if case and Unicode form "
                "are ignored; rename one"
            )
        self._seen[key] = name
        self._files.append(path)

    def check_folders(self) -> None:
        """Refuse a file that is also a folder of another."""
        for name in self._files:
            for parent in name.parents:
                if _folded(parent) in self._seen:
                    raise UserError(
                        f"{self._where}: {self._what} {str(parent)!r} is a file and also the folder of {str(name)!r}"
                    )


def _folded(path: PurePosixPath) -> str:
    return composed(str(path).casefold())


class _Entries(Names):
    """The names of an archive, and the limits of its unpacked size."""

    def __init__(self, path: Path, where: str, kind: str):
        super().__init__(where, "entry", f"pack the {kind} again without it")
        self._packed = max(1, path.stat().st_size)
        self._total = self._count = 0

    def spend(self, name: str, size: int) -> None:
        self._count += 1
        self._total += size
        if self._count > MAX_ENTRIES:
            raise UserError(f"{self._where}: found more than {MAX_ENTRIES} entries; split it")
        if size > MAX_ENTRY_BYTES:
            raise self.refuse(name, f"declares {size} bytes, more than {MAX_ENTRY_BYTES}")
        ratio = self._total / self._packed
        if self._total > MAX_TOTAL_BYTES or (self._total > RATIO_MATTERS_BYTES and ratio > MAX_RATIO):
            raise UserError(
                f"{self._where}: entries would grow to {self._total} bytes, {ratio:.0f} times the archive, up to "
                f"{name!r}; expected at most {MAX_TOTAL_BYTES} bytes and {MAX_RATIO} times: {UNPACK}"
            )


class Zip:
    """A zip file; `sizes` has the bytes of its files."""

    def __init__(self, path: Path, where: str):
        self._path, self._where = path, where
        self._archive = zipfile.ZipFile(path)
        entries = _Entries(path, where, "zip")
        self._entries: dict[PurePosixPath, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            # As stored: ZipInfo.filename is already cut at a NUL byte.
            name = entries.check(info.orig_filename)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise entries.refuse(info.filename, "is a link or a device, not a file")
            if info.flag_bits & 0x1:
                raise entries.refuse(info.filename, "is encrypted")
            entries.spend(info.filename, info.file_size)
            if not info.is_dir() and not is_junk(name):
                entries.add(name, info.filename)
                self._entries[name] = info
        entries.check_folders()
        self.sizes = {name: info.file_size for name, info in self._entries.items()}

    def extract(self, targets: Mapping[PurePosixPath, Path]) -> None:
        """Write the entries to their targets."""
        for name, target in targets.items():
            info = self._entries[name]
            with _reading(self._where, info.filename), self._archive.open(info) as source:
                _write(source, target)  # the reader stops at the declared size, and checks the CRC

    def close(self) -> None:
        self._archive.close()


class Tar:
    """A tar file, plain or compressed by gzip, bzip2 or xz; `sizes` has the bytes of its files."""

    def __init__(self, path: Path, where: str):
        self._path, self._where = path, where
        entries = _Entries(path, where, "tar")
        self.sizes: dict[PurePosixPath, int] = {}
        for member in self._members():
            name = entries.check(member.name)
            if not (member.isreg() or member.isdir()):
                kind = "a symbolic link" if member.issym() else "a hard link" if member.islnk() else "a device or pipe"
                raise entries.refuse(member.name, f"is {kind}, not a file")
            if member.issparse():
                raise entries.refuse(member.name, "is sparse: it declares bytes that the archive does not contain")
            entries.spend(member.name, member.size)
            if member.isreg() and not is_junk(name):
                entries.add(name, member.name)
                self.sizes[name] = member.size
        entries.check_folders()

    def _members(self) -> Iterator[tarfile.TarInfo]:
        with _open_packed(self._path) as file, tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as tar:
            for member in tar:
                self._tar = tar
                yield member
                cast(Any, tar).members.clear()  # a million entries would stay in memory
            # tarfile takes a damaged or missing header for the end; the real end is a block of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"found no end mark at byte {tar.offset}: it is truncated or damaged")

    def extract(self, targets: Mapping[PurePosixPath, Path]) -> None:
        """Write the entries to their targets, in the order of the archive: a compressed one is read once."""
        with _reading(self._where, None):
            for member in self._members():
                target = targets.get(PurePosixPath(member.name))
                if target is not None and member.isreg():
                    source = self._tar.extractfile(member)
                    assert source is not None
                    with _reading(self._where, member.name):
                        _write(source, target)
                        if target.stat().st_size != member.size:
                            raise EOFError(f"found {target.stat().st_size} of {member.size} bytes")

    def close(self) -> None:
        """Nothing to close."""


class _Bounded:
    """A file that reads no more than `MAX_READ_BYTES` at once: a header may declare any length of itself."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header declares {size} bytes")
        return self._file.read(size)


def _open_packed(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(6)
    if magic[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.open(path))
    if magic[:3] == b"BZh":
        return cast(IO[bytes], bz2.open(path))
    if magic == b"\xfd7zXZ\0":
        return cast(IO[bytes], lzma.open(path))
    return path.open("rb")


def open_archive(path: Path, kind: str | None, where: str) -> Zip | Tar:
    """A zip or tar, with all names checked.

    Args:
        kind: "zip", "tar" or None for either.
        where: its name in messages.

    Raises:
        UserError: it is neither, or damaged, unsafe or too large; names the file or the entry.
    """
    try:
        if kind is None:
            kind = "zip" if zipfile.is_zipfile(path) else "tar"
        return Zip(path, where) if kind == "zip" else Tar(path, where)
    except DAMAGED as error:
        raise UserError(
            f"{where}: found no complete {kind} file ({error}); expected one: fetch it again or unpack it and "
            "set ingest.kind=folder"
        ) from None


@contextmanager
def _reading(where: str, name: str | None) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        entry = f"entry {name!r} cannot" if name else "cannot"
        raise UserError(f"{where}: {entry} be read ({error}); pack or fetch it again") from None


def _write(source: IO[bytes], target: Path) -> None:
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(source, file, 2**20)
