"""A headless Chromium for pages that are files: what it complains of, what sticks out, what it looks like.

Driven by Chromium's DevTools protocol over a pair of pipes (`--remote-debugging-pipe`): no port to race for, no
driver, no package beside Python. On Debian: apt-get install chromium.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
HELP = "no Chromium found; on Debian: apt-get install chromium; or name one in CHROMIUM"
# What makes a page wider than its window, but for what lies in an element that scrolls by itself.
OVERFLOWING = """
(() => {
  const scrolls = (element) => {
    for (let one = element.parentElement; one && one !== document.body; one = one.parentElement)
      if (getComputedStyle(one).overflowX !== "visible") return true;
    return false;
  };
  // Not innerWidth, which on a phone grows with what sticks out.
  const root = document.documentElement, width = root.clientWidth;
  const wide = [...document.body.querySelectorAll("*")].filter(
    (one) => one.getBoundingClientRect().right > width + 1 && !scrolls(one));
  if (root.scrollWidth > width && !wide.length) wide.push(root);
  return wide.slice(0, 10).map((one) => one.outerHTML.slice(0, 160));
})()
"""


def find_chromium() -> str | None:
    """Path of the browser: $CHROMIUM, or the first of the usual names on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a headless Chromium: `with Browser() as browser: browser.open(path); browser.errors`.

    `errors` holds what the page's console says at level error or warning, exceptions, refusals by the page's own
    policy, and addresses that it asked for beside its own file.
    """

    def __init__(self, timeout_s: float = 60):
        self.timeout_s = timeout_s
        self.errors: list[str] = []

    def __enter__(self) -> "Browser":
        chromium = find_chromium()
        assert chromium, HELP
        self._profile = tempfile.TemporaryDirectory(prefix="chromium ", ignore_cleanup_errors=True)
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        # The pipes have to be descriptors 3 and 4, whatever numbers they have here.
        command = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        options = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"]
        # No sandbox, because root has none: our own pages alone are opened. No /dev/shm: containers have little of it.
        options += ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "about:blank"]
        self._log = open(Path(self._profile.name, "log.txt"), "wb")
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, "chromium", chromium, *options],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self._from, False)
        self._number, self._pending, self._session = 0, b"", None
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.close(self._to)  # the browser ends with its pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._from)
        self._log.close()
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict:
        """A command of the DevTools protocol and its result; events that arrive meanwhile are taken in."""
        self._number += 1
        message: dict = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self.timeout_s
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _receive(self, deadline: float) -> dict:
        while b"\0" not in self._pending:
            assert self._process.poll() is None, f"Chromium ended by itself: {self._said()}"
            assert time.monotonic() < deadline, f"Chromium is silent: {self._said()}"
            try:
                self._pending += os.read(self._from, 2**20)
            except BlockingIOError:
                time.sleep(0.01)
        line, _, self._pending = self._pending.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _said(self) -> str:
        return Path(self._log.name).read_text(errors="replace")[-2000:]

    def _note(self, event: str | None, params: dict) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["text"])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(str([one.get("value") for one in params["args"]]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith(("data:", self._address)):
                self.errors.append(f"asked for {address}")

    def open(self, page: Path | str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file or an address into a window of this many CSS px and wait until all of it is there; `errors`
        begins anew. A page at an address may ask for what lies below it."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.errors = []
        self._loaded, self._address = False, page if isinstance(page, str) else page.absolute().as_uri()
        self.call("Page.navigate", url=self._address)
        deadline = time.monotonic() + self.timeout_s
        while not self._loaded:
            self._receive(deadline)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def overflowing(self) -> list[str]:
        """The beginnings of elements that stick out of the window to the right, unless they scroll by themselves."""
        return self.evaluate(OVERFLOWING)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """The page as PNG, beyond the window where `whole`."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
