"""The server of `unetpp try`: only on this machine, only for those who know the address, one prediction at a time.

Several threads take requests, but a single one computes (`Server.work`), so that measured times are not disturbed by
other predictions and Ctrl-C ends the server.
"""

import hmac
import json
import re
import secrets
import socketserver
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit

from pipelines.core.files import scratch
from pipelines.trying.subject import Subject
from pipelines.trying.tried import Tried, answer, describe_answer, describe_image, files
from unetpp.errors import FileError, UserError, said
from unetpp.images.decode import decode_image
from unetpp.images.pictures import Limits

HOST = "127.0.0.1"
MAX_MIB = 256  # per file
MAX_VALUES = 2**28  # probabilities of an image, four bytes each
MAX_PIXELS = 50_000_000
HELD = 3  # the newest images stay in memory
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the page itself sets the rest
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address contains the token
    "X-Content-Type-Options": "nosniff",
}

T = TypeVar("T")


class RefusedError(UserError):
    """A refused request: it is answered with one line."""

    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status = status


class Reply(NamedTuple):
    kind: str
    content: bytes


def limits(subject: Subject) -> Limits:
    """The largest image that may be dropped on the page: it is predicted in memory."""
    return Limits(min(MAX_PIXELS, MAX_VALUES // subject.about.num_outputs), MAX_MIB)


class Server(socketserver.ThreadingTCPServer):  # not HTTPServer, which asks a name server for this machine's name
    """Serves the page of a subject on a port of 127.0.0.1; port 0 selects any free one.

    Raises:
        UserError: the port is taken.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self, subject: Subject, page: str, port: int = 0):
        self.subject, self.page, self.limits = subject, page, limits(subject)
        self.token = secrets.token_urlsafe(16)
        self.held: dict[str, Tried] = {}
        self._numbers, self._tasks = count(), SimpleQueue()
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "not a port number"
            raise UserError(f"--port {port}: {reason}; use another port, or leave out --port for a free one") from None
        self.port = self.server_address[1]

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}/{self.token}/"

    def work(self) -> None:
        """Run the tasks of requests in this thread, until `end`."""
        while (asked := self._tasks.get()) is not None:
            task, future = asked
            try:
                future.set_result(task())
            except Exception as error:
                future.set_exception(error)

    def end(self) -> None:
        self._tasks.put(None)

    def do(self, task: Callable[[], T]) -> T:
        """Run `task` in the thread that computes, and return its result."""
        future: Future[T] = Future()
        self._tasks.put((task, future))
        return future.result()

    def hold(self, tried: Tried) -> dict:
        """Keep an image, dropping the oldest if there are too many; returns what the page shows of it."""
        described = describe_image(tried)
        number = str(next(self._numbers))
        self.held[number] = tried
        while len(self.held) > HELD:
            del self.held[next(iter(self.held))]
        return described | {"id": number}

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # the browser closed the connection
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version, server_version, sys_version = "HTTP/1.1", "unetpp", ""
    timeout = 60  # seconds without a byte

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: errors are shown on the page."""

    def do_GET(self) -> None:
        self._reply("GET")

    def do_POST(self) -> None:
        self._reply("POST")

    def _reply(self, method: str) -> None:
        status = HTTPStatus.OK
        try:
            reply = self._answer(method)
        except OSError as error:
            if isinstance(error, (ConnectionError, TimeoutError)):
                raise
            status, reply = HTTPStatus.INTERNAL_SERVER_ERROR, _json({"error": said(error)})
        except UserError as error:
            status, reply = getattr(error, "status", HTTPStatus.BAD_REQUEST), _json({"error": str(error)})
        except MemoryError:
            status, reply = HTTPStatus.INSUFFICIENT_STORAGE, _json({"error": "not enough memory for this image"})
        except Exception as error:  # a bug: shown in the terminal and on the page, which stays usable
            traceback.print_exc()
            status, reply = HTTPStatus.INTERNAL_SERVER_ERROR, _json({"error": said(error)})
        # The unread rest of a refused request would be taken for the next request.
        self.close_connection = self.close_connection or status != HTTPStatus.OK
        self.send_response(status)
        sent = {"Content-Type": reply.kind, "Content-Length": str(len(reply.content))}
        for name, value in (HEADERS | sent | ({"Connection": "close"} if self.close_connection else {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.content)

    def _answer(self, method: str) -> Reply:
        self._check()
        where = urlsplit(self.path)
        path = where.path.removeprefix(f"/{self.server.token}/")
        if method == "GET" and not path:
            return Reply("text/html; charset=utf-8", self.server.page.encode())
        if method == "POST" and path == "images":
            return _json(self._take(Path(parse_qs(where.query).get("name", ["image"])[0]).name))
        if method == "POST" and (found := re.fullmatch(r"examples/(\d+)", path)):
            return _json(self._show(int(found[1])))
        if method == "GET" and (found := re.fullmatch(r"images/(\d+)/(L\d+)(?:/(\d+)\.png)?", path)):
            tried = self.server.held.get(found[1])
            if tried is None or found[2] not in self.server.subject.names:
                raise RefusedError(HTTPStatus.NOT_FOUND, "this image is no longer in memory: drop it again")
            if found[3] is None:
                return _json(self.server.do(lambda: self._predict(tried, found[2])))
            return Reply("image/png", self.server.do(lambda: self._file(tried, found[2], int(found[3]))))
        raise RefusedError(HTTPStatus.NOT_FOUND, "no such page")

    def _check(self) -> None:
        """Refuse requests that do not come from the page, by host name, origin and token.

        The host name is checked because a foreign name may resolve to this machine (DNS rebinding).
        """
        host = f"{HOST}:{self.server.port}", f"localhost:{self.server.port}"
        if self.headers.get("Host") not in host:
            raise RefusedError(HTTPStatus.MISDIRECTED_REQUEST, f"this page answers only at {HOST}")
        if self.headers.get("Origin", f"http://{self.headers['Host']}") != f"http://{self.headers['Host']}":
            raise RefusedError(HTTPStatus.FORBIDDEN, "this page does not answer requests from other pages")
        given = self.path[: len(self.server.token) + 2].encode()
        if not hmac.compare_digest(given, f"/{self.server.token}/".encode()):
            raise RefusedError(HTTPStatus.FORBIDDEN, "open the address that `unetpp try` printed: it ends with a token")

    def _take(self, name: str) -> dict:
        """Receive an image that was dropped on the page, and decode it as `unetpp predict` does."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected the header Content-Length, the size of the file")
        if int(length) > self.server.limits.max_file_mib * 2**20:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{name}: found {int(length) / 2**20:.0f} MiB; expected at most {self.server.limits.max_file_mib}: "
                "`unetpp predict` takes larger files",
            )
        with scratch() as folder:
            file = folder / "image"
            left = int(length)
            with file.open("wb") as target:
                while left and (content := self.rfile.read(min(left, 2**20))):
                    target.write(content)
                    left -= len(content)
            if left:
                raise RefusedError(HTTPStatus.BAD_REQUEST, f"{name}: the upload is incomplete: drop it again")
            return self.server.do(lambda: self._decode(file, name))

    def _decode(self, file: Path, name: str) -> dict:
        try:
            image = decode_image(file, self.server.subject.about.in_channels, limits=self.server.limits)
        except FileError as error:
            reason, fix = error.reason, error.fix
            if "too many pixels" in reason:  # the limit is this page's
                reason, fix = reason.replace("prepare.max_pixels = ", ""), "`unetpp predict` takes larger images"
            raise UserError(f"{name}: {reason}: {fix}") from None
        return self.server.hold(Tried(name, image))

    def _show(self, number: int) -> dict:
        if number >= len(self.server.subject.examples):
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such example")
        one = self.server.subject.examples[number]
        return self.server.do(lambda: self.server.hold(Tried(one.name, one.image, one.mask)))

    def _predict(self, tried: Tried, name: str) -> dict:
        subject = self.server.subject
        if name not in tried.answers:
            tried.answers[name] = answer(subject.predictor(name), tried.image)
        return describe_answer(tried, name, subject.about, subject.beside)

    def _file(self, tried: Tried, name: str, number: int) -> bytes:
        made = list(files(tried, name, self.server.subject.about)) if name in tried.answers else []
        if number >= len(made):
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such file")
        return made[number][1]()


def _json(content: object) -> Reply:
    return Reply("application/json", json.dumps(content).encode())
