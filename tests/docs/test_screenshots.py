"""The command of the pictures in docs/images knows where in a page a picture ends."""

import pytest
from PIL import Image

from tests.pipelines.pages.reports import page_of, whole
from tests.screenshots import PAGES, take_page


@pytest.mark.browser
def test_the_picture_of_the_depth_report_ends_after_the_viewer(browser, tmp_path):
    page, (_, width, end) = tmp_path / "report.html", PAGES["depth_report"]
    page.write_text(page_of(whole()), encoding="utf-8")
    take_page(browser, page, width, end, tmp_path / "picture.png")
    browser.open(page, width)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width == width
        top = browser.evaluate("document.querySelector('#look').getBoundingClientRect().top")
        quality = browser.evaluate("document.querySelector('#quality').getBoundingClientRect().top")
        assert top + 200 < picture.height < quality
