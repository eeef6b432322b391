"""An archive by its URL, over HTTP: a broken download is resumed by Range, and its sha256 is checked."""

import time
from hashlib import sha256 as hash_of
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from pipelines.console.progress import watched_bytes
from pipelines.core.files import write_json
from pipelines.core.full_disk import check_space, disk_errors
from unetpp.errors import UserError
from unetpp.files import check_sha256, read_json, sha256

# Of one request; and of responses in a row that break off without a byte.
ATTEMPTS = 5
TIMEOUT_S = 60
CHUNK = 2**18
RETRIED = (408, 429, 500, 502, 503, 504)


def download(url: str, expected: str | None, cache: Path) -> tuple[Path, str]:
    """The archive at `url` as a file in the folder `cache`, and its sha256.

    A cached file is reused: without a request if its sha256 is the expected one, else if the server says that it did
    not change. Parts that an earlier run fetched are not fetched again.

    Raises:
        UserError: it cannot be fetched, or its sha256 is not the expected one; names the address.
    """
    folder = cache / hash_of(url.encode()).hexdigest()[:40]
    folder.mkdir(parents=True, exist_ok=True)
    file = _File(url, folder)
    if not (expected and file.found() == expected):
        file.fetch()
    found = file.found()
    assert found
    try:
        check_sha256(url, found, expected or found, "the file there is a different one, or ingest.sha256 is wrong")
    except UserError:
        file.forget()
        raise
    return file.path, found


class _File:
    """A file that is fetched: `archive` when complete, `partial` before, each with the server's facts as JSON."""

    def __init__(self, url: str, folder: Path):
        self._url = url
        self.path, self._partial = folder / "archive", folder / "partial"

    def found(self) -> str | None:
        """The sha256 of the complete file, or None."""
        return sha256(self.path) if self.path.is_file() else None

    def forget(self) -> None:
        for path in (self.path, self._partial):
            path.unlink(missing_ok=True)
            _facts_path(path).unlink(missing_ok=True)

    def fetch(self) -> None:
        """Bring the file up to date with the server."""
        waits = {"backoff_factor": 0.5, "backoff_max": 5, "retry_after_max": TIMEOUT_S}
        retry = Retry(ATTEMPTS - 1, status_forcelist=RETRIED, raise_on_status=False, **waits)
        with requests.Session() as session:
            session.headers.update({"User-Agent": "unetpp", "Accept-Encoding": "identity"})
            session.mount("http://", HTTPAdapter(max_retries=retry))
            session.mount("https://", HTTPAdapter(max_retries=retry))
            failures, here = 0, _size(self._partial)
            while not self._attempt(session):  # urllib3 retries a request, but never its body
                failures = failures + 1 if _size(self._partial) <= here else 1
                if failures >= ATTEMPTS:
                    raise self._given_up("the body ended early", failures)
                here = _size(self._partial)
                time.sleep(2**failures / 4)

    def _attempt(self, session: requests.Session) -> bool:
        """One request and its response; whether the file is complete now."""
        whole, part = _read_facts(self.path), _read_facts(self._partial)
        start = _size(self._partial) if part else 0
        headers = {}
        if start and part.get("validator"):
            # If the file changed, the server sends all of the new one instead.
            headers = {"Range": f"bytes={start}-", "If-Range": part["validator"]}
        elif whole.get("validator") and self.found() == whole["sha256"]:
            is_etag = whole["validator"].startswith('"')
            headers = {"If-None-Match" if is_etag else "If-Modified-Since": whole["validator"]}
        try:
            answer = session.get(self._url, headers=headers, stream=True, timeout=TIMEOUT_S)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise self._given_up(str(getattr(error.args[0], "reason", error)), ATTEMPTS) from None
        except requests.RequestException as error:
            raise UserError(f"{self._url}: {error}; check ingest.location") from None
        with answer:
            if answer.status_code == 304:
                return True
            if answer.status_code == 416:  # our partial file is not a prefix of the server's
                self._partial.unlink(missing_ok=True)
                return False
            if not answer.ok:
                raise self._refused(answer)
            if answer.status_code != 206:  # the first request, or a server without Range, or a file that changed
                start = 0
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise UserError(
                    f"{self._url}: asked from byte {start} on, the server sends {answer.headers.get('Content-Range')!r}"
                )
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else None
            etag = answer.headers.get("ETag")
            # A weak ETag says nothing about the bytes; use the date then.
            strong = etag if etag and etag.startswith('"') else answer.headers.get("Last-Modified")
            facts = {"validator": strong}
            check_space(self._partial.parent, (total or 0) - start, "ingest")
            with disk_errors(self._partial.parent):
                write_json(_facts_path(self._partial), facts)
            if not self._save(answer, start, total):
                return False
        # With its sha256: a file that somebody changed is fetched again, whatever the server says.
        write_json(_facts_path(self.path), facts | {"sha256": sha256(self._partial)})
        self._partial.replace(self.path)
        _facts_path(self._partial).unlink()
        return True

    def _save(self, answer: requests.Response, start: int, total: int | None) -> bool:
        """Append the body to the partial file up to byte `start`; whether all of it arrived."""
        with (
            self._partial.open("r+b" if start else "wb") as file,
            watched_bytes("downloading", total, start) as progress,
        ):
            file.truncate(start)
            file.seek(start)
            try:
                while piece := answer.raw.read1(CHUNK):
                    with disk_errors(self._partial.parent):
                        file.write(piece)
                        file.flush()
                    progress.update(len(piece))
            except HTTPError:
                return False
            return total in (None, file.tell())

    def _refused(self, answer: requests.Response) -> UserError:
        said = f"{answer.status_code} {answer.reason}"
        if answer.status_code in RETRIED:
            return self._given_up(said, ATTEMPTS)
        advice = "check ingest.location"
        if answer.status_code in (404, 410):
            advice = "expected an archive there: correct ingest.location"
        elif answer.status_code in (401, 403):
            advice = "expected a publicly readable address: fetch it yourself and set ingest.kind to zip or tar"
        return UserError(f"{self._url}: the server answers {said}; {advice}")

    def _given_up(self, cause: str, times: int) -> UserError:
        return UserError(
            f"{self._url}: cannot be fetched ({cause}, {times} times; {_size(self._partial)} bytes are here); check "
            "the address and the connection and rerun the command: it resumes from here"
        )


def _facts_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_facts(path: Path) -> dict:
    """What the server said about the file at `path`, or nothing."""
    try:
        return read_json(_facts_path(path), "it is fetched again")
    except UserError:
        return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
