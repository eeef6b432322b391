"""The documentation site, as `make docs` builds it: no broken link, no request to anyone, on any screen."""

import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = str(Path(sys.executable).parent)


def make_docs(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": SCRIPTS + os.pathsep + os.environ["PATH"], "NO_COLOR": "1"}
    command = ["make", "--old-file=setup", "docs"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """What the site is made from, in a folder of its own."""
    folder = tmp_path_factory.mktemp("project")
    listed = re.search(r"^PAGES = (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert listed
    for pattern in (*listed[1].split(), "Makefile", "mkdocs.yml", "unetpp"):
        for path in REPOSITORY.glob(pattern):
            target = folder / path.relative_to(REPOSITORY)
            target.parent.mkdir(exist_ok=True)
            shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    return folder


@pytest.fixture(scope="module")
def site(project) -> Path:
    done = make_docs(project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project / "build/site"


def test_every_page_is_in_the_site_and_asks_nobody_for_anything(site):
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    assert {f"docs/{path.stem}.html" for path in (REPOSITORY / "docs").glob("*.md")} - {
        "docs/index.html"
    } < pages.keys()
    loaded = r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:[^\"\s>]*)|<link[^>]*\shref=\"?(https?:[^\"\s>]*)"
    asked = {name: re.findall(loaded, text) for name, text in pages.items()}
    assert {name: found for name, found in asked.items() if found} == {}


def test_the_nav_names_every_page():
    listed = (REPOSITORY / "mkdocs.yml").read_text()
    pages = [*(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "benchmarks").glob("*.md")]
    names = [path.relative_to(REPOSITORY).as_posix() for path in pages]
    assert [name for name in names if f" {name}\n" not in listed] == []


def test_the_api_page_lists_every_public_name_in_a_line():
    import unetpp

    listed = re.findall(r"^\| `(\w+)[`(]", (REPOSITORY / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(unetpp.__all__) - {"Segmenter", "__version__"})


def test_the_api_page_has_the_docstring_of_every_public_name(site):
    import unetpp

    text = (site / "docs/api.html").read_text()
    shown = set(re.findall(r'id="unetpp\.(\w+)"', text))
    assert set(unetpp.__all__) - shown == {"Segmenter", "__version__"}  # the first leaves with the next release
    assert "Images are numpy arrays" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        "[x](data.md#nowhere)",
        pytest.param("[x](nowhere.md)", marks=pytest.mark.nightly),
        pytest.param("::: unetpp.nothing", marks=pytest.mark.nightly),
    ],
)
def test_a_broken_link_or_name_ends_the_build(project, fault):
    page = project / "docs/broken.md"
    page.write_text(f"# Broken\n\n{fault}\n")
    try:
        assert make_docs(project).returncode != 0
    finally:
        page.unlink()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["docs/[aci]*.html", pytest.param("**/*.html", marks=pytest.mark.nightly)])
def test_pages_fit_a_desktop_and_a_phone_and_complain_of_nothing(site, browser, pattern):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root, found = f"http://127.0.0.1:{server.server_port}/", {}
    try:
        for path in sorted(site.glob(pattern)):
            name = path.relative_to(site).as_posix()
            for width in (360, 1280):
                browser.open(root + name, width)
                errors = [one for one in browser.errors if not one.startswith(f"asked for {root}")]
                if wrong := errors + browser.overflowing():
                    found[name, width] = wrong
    finally:
        server.shutdown()
        server.server_close()
    assert found == {}
