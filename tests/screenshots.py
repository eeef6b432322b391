"""The pictures in docs/images, from the pages of a project that has run: `make screenshots FROM=/path/to/project`.

Take a project whose images may be published, such as the demo: parts of them are in the pictures.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

from tests.browser import Browser
from tests.conftest import REPOSITORY
from tests.servers import free_port, listens
from tests.waiting import wait_for

IMAGES = REPOSITORY / "docs/images"
# Each page, the width of its window, and the element before which the picture ends.
PAGES = {
    "data_report": ("reports/data.html", 900, "#objects"),
    "depth_report": ("reports/evaluate/report.html", 1280, "h3:has(+ [aria-label^=Best])"),
}


def take_page(browser: Browser, page: Path, width: int, end: str, picture: Path) -> None:
    """A page from its top to one of its elements."""
    browser.open(page, width)
    height = browser.evaluate(f"Math.floor(document.querySelector('{end}').getBoundingClientRect().top + scrollY)")
    browser.open(page, width, height)
    browser.screenshot(picture, whole=False)


def take_registry(browser: Browser, project: Path, picture: Path) -> None:
    """The registered model in MLflow."""
    port, name = free_port(), yaml.safe_load((project / "params.yaml").read_text())["register"]["model_name"]
    command = [sys.executable, "-m", "pipelines.cli", "mlflow", "--port", str(port)]
    server = subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/#/models/{name}?workflowType=machine_learning"
        wait_for(lambda: listens(port), server)
        browser.open(address, 1100, 930)
        wait_for(lambda: "champion" in browser.evaluate("document.body.innerText"), server)
        panel = "document.querySelector('[data-component-id=\"mlflow.assistant.chat_panel.close\"]')"
        browser.evaluate(f"{panel}?.click()")  # it opens beside the page at the first visit
        wait_for(lambda: browser.evaluate(f"{panel} === null"), server)
        browser.screenshot(picture, whole=False)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__)
    parser.add_argument("project", type=Path, help="folder of a project whose stages have run")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the pictures (default: docs/images)")
    arguments = parser.parse_args()
    with Browser() as browser:
        for name, (page, width, end) in PAGES.items():
            take_page(browser, (arguments.project / page).absolute(), width, end, arguments.out / f"{name}.png")
        take_registry(browser, arguments.project.absolute(), arguments.out / "mlflow_model.png")


if __name__ == "__main__":
    main()
