"""An archive by its address, over HTTP: begun again where it broke, by Range, and checked by its sha256."""

import http.client
import json
import time
import urllib.error
import urllib.request
from hashlib import sha256 as hash_of
from pathlib import Path

from tqdm import tqdm

from pipelines.core.checksums import sha256
from pipelines.core.files import check_space, disk_errors, write_json
from unetpp.errors import UserError

# In a row, without a byte in between.
ATTEMPTS = 5
TIMEOUT_S = 60
CHUNK = 2**18
BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError)
RETRIED = (408, 429, 500, 502, 503, 504)


def download(url: str, expected: str | None, cache: Path) -> tuple[Path, str]:
    """The archive at `url` as a file in the folder `cache`, and its sha256.

    A file that is there is used again: without a request where its sha256 is the expected one, else when the server
    says that it did not change. What an earlier run had fetched of it is not fetched again.

    Raises:
        UserError: it cannot be had, or its sha256 is not the expected one; names the address.
    """
    folder = cache / hash_of(url.encode()).hexdigest()[:40]
    folder.mkdir(parents=True, exist_ok=True)
    file = _File(url, folder)
    if not (expected and file.found() == expected):
        file.fetch()
    found = file.found()
    if expected and found != expected:
        file.forget()
        raise UserError(
            f"{url}: found the sha256 {found}; expected {expected}: the file there is another one, or ingest.sha256 is "
            "wrong"
        )
    assert found
    return file.path, found


class _File:
    """A file that is fetched: `archive` when whole, `partial` before, and what the server said of each as JSON."""

    def __init__(self, url: str, folder: Path):
        self._url = url
        self.path, self._partial = folder / "archive", folder / "partial"

    def found(self) -> str | None:
        """The sha256 of the whole file, or None."""
        return sha256(self.path) if self.path.is_file() else None

    def forget(self) -> None:
        for path in (self.path, self._partial):
            path.unlink(missing_ok=True)
            _facts_path(path).unlink(missing_ok=True)

    def fetch(self) -> None:
        """Bring the file up to date with the server."""
        failures = 0
        while True:
            before = _size(self._partial)
            try:
                if self._attempt():
                    return
                cause = "the body ended early"
            except urllib.error.HTTPError as error:
                cause = f"{error.code} {error.reason}"
                if error.code not in RETRIED:
                    raise UserError(f"{self._url}: {self._explain(error)}") from None
            except (urllib.error.URLError, *BROKEN) as error:
                cause = str(getattr(error, "reason", error)) or type(error).__name__
            failures = failures + 1 if _size(self._partial) <= before else 1
            if failures >= ATTEMPTS:
                raise UserError(
                    f"{self._url}: cannot be fetched ({cause}, {failures} times; {_size(self._partial)} bytes are "
                    "here); check the address and the connection and give the same command again, it goes on from here"
                )
            time.sleep(min(2**failures / 4, 5))

    def _attempt(self) -> bool:
        """One request and what comes of it; whether the file is whole now."""
        whole, part = _read_facts(self.path), _read_facts(self._partial)
        start = _size(self._partial) if part else 0
        request = urllib.request.Request(self._url, headers={"User-Agent": "unetpp", "Accept-Encoding": "identity"})
        if start and part.get("validator"):
            request.add_header("Range", f"bytes={start}-")
            # Where the file changed, the server sends all of the new one instead.
            request.add_header("If-Range", part["validator"])
        elif whole.get("validator") and self.found() == whole["sha256"]:
            is_etag = whole["validator"].startswith('"')
            request.add_header("If-None-Match" if is_etag else "If-Modified-Since", whole["validator"])
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 304:
                return True
            if error.code == 416:  # what is here is not a beginning of what is there
                self._partial.unlink(missing_ok=True)
                return False
            raise
        with answer:
            if answer.status != 206:  # the first request, or a server without Range, or a file that changed
                start = 0
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise UserError(
                    f"{self._url}: asked from byte {start}, the server sends {answer.headers.get('Content-Range')!r}"
                )
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else None
            etag = answer.headers.get("ETag")
            # A weak ETag says nothing of the bytes; the date then has to do.
            strong = etag if etag and etag.startswith('"') else answer.headers.get("Last-Modified")
            facts = {"url": self._url, "validator": strong}
            check_space(self._partial.parent, (total or 0) - start)
            with disk_errors(self._partial.parent):
                write_json(_facts_path(self._partial), facts)
            self._save(answer, start, total)
        if total is not None and _size(self._partial) != total:
            return False
        # With its sha256: a file that somebody wrote into is fetched again, whatever the server says of its own.
        write_json(_facts_path(self.path), facts | {"sha256": sha256(self._partial)})
        self._partial.replace(self.path)
        _facts_path(self._partial).unlink()
        return True

    def _save(self, answer: http.client.HTTPResponse, start: int, total: int | None) -> None:
        """Append the body to what is here up to byte `start`."""
        with (
            self._partial.open("r+b" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None) as progress,
        ):
            file.truncate(start)
            file.seek(start)
            while piece := answer.read1(CHUNK):
                with disk_errors(self._partial.parent):
                    file.write(piece)
                    file.flush()
                progress.update(len(piece))

    def _explain(self, error: urllib.error.HTTPError) -> str:
        said = f"the server answers {error.code} {error.reason}"
        if error.code in (404, 410):
            return f"{said}; expected an archive there: correct ingest.location"
        if error.code in (401, 403):
            return f"{said}; expected an address that all may read: fetch it yourself and set ingest.kind to zip or tar"
        return f"{said}; check ingest.location"


def _facts_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_facts(path: Path) -> dict:
    """What the server said of the file at `path`, or nothing."""
    try:
        return json.loads(_facts_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
