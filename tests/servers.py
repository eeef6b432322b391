"""Real servers on loopback: an S3 store (moto), HTTP, a proxy that breaks what it passes on."""

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.waiting import wait_for

PAGE = 50  # keys in a page of a listing


def free_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def listens(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case

    @property
    def is_object(self) -> bool:
        """A read of an S3 object, as opposed to a listing."""
        return self.method == "GET" and "list-type=2" not in self.path


@dataclass(frozen=True)
class Answer:
    """What a server answers. `cut`: the connection breaks after so many bytes of the body, once `hold` is set."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: int | None = None
    hold: threading.Event | None = None


def s3_error(status: int, code: str, message: str = "as the test wants", **fields: str) -> Answer:
    """An error as S3 words it."""
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{inner}</Error>"
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


class Server:
    """An HTTP server in a thread; `answer` decides, and `requests` remembers."""

    def __init__(self, answer: Callable[[Request, bytes], Answer]):
        self.requests: list[Request] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {key.lower(): value for key, value in self.headers.items()}
                request = Request(self.command, self.path, headers)
                requests.append(request)
                result = answer(request, body)
                self.send_response(result.status)
                for key, value in ({"Content-Length": str(len(result.body))} | result.headers).items():
                    self.send_header(key, value)
                self.end_headers()
                try:
                    if self.command != "HEAD":
                        self.wfile.write(result.body[: result.cut])
                        self.wfile.flush()
                        if result.hold:
                            result.hold.wait(60)
                except ConnectionError:
                    self.close_connection = True
                if result.cut is not None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_PUT = do_POST = do_PATCH = do_HEAD = do_DELETE = _handle  # noqa: N815

            def log_message(self, format, *args):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass  # a client that was killed

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def pass_on(upstream: str) -> Callable[[Request, bytes], Answer]:
    """An `answer` that asks another server."""
    host = upstream.removeprefix("http://")

    def answer(request: Request, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.request(request.method, request.path, body, request.headers)
            got = connection.getresponse()
            headers = {key: value for key, value in got.getheaders() if key.lower() not in ("connection", "server")}
            return Answer(got.status, headers, got.read())
        finally:
            connection.close()

    return answer


def file_answer(content: bytes, etag: str = '"one"', ranges: bool = True) -> Callable[[Request, bytes], Answer]:
    """An `answer` that serves one file, with or without Range."""

    def answer(request: Request, _body: bytes) -> Answer:
        headers = {"ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Answer(304, headers, b"")
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if ranges and wanted and request.headers.get("if-range") in (None, etag):
            start = int(wanted[1])
            span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return Answer(206, headers | span, content[start:])
        return Answer(200, headers, content)

    return answer


class Moto:
    """moto's S3 store as a process of its own."""

    def __init__(self, log: Path):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = log.open("w")
        environment = os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, env=environment)
        try:
            wait_for(lambda: listens(port), self._process, log)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()
