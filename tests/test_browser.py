"""The browser of the tests sees what it is there to see: a page without faults passes, each fault is told."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser


def write(folder: Path, body: str, head: str = "") -> Path:
    path = folder / "a page with spaces & signs.html"
    path.write_text(f'<!doctype html><meta name="viewport" content="width=device-width">{head}<body>{body}</body>')
    return path


def test_a_good_page_has_no_faults_and_can_be_seen(browser, tmp_path):
    page = write(tmp_path, '<p>Words.</p><div style="overflow-x: auto"><div style="width: 3000px">wide</div></div>')
    for width in (360, 1280):
        browser.open(page, width)
        assert browser.errors == []
        assert browser.overflowing() == []
        assert browser.evaluate("innerWidth") == width
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_what_sticks_out_is_named_at_the_width_at_which_it_does(browser, tmp_path):
    page = write(tmp_path, '<div id="wide" style="width: 800px">wide</div>')
    browser.open(page, 1280)
    assert browser.overflowing() == []
    browser.open(page, 360)
    assert any('id="wide"' in one for one in browser.overflowing())


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<script>console.error('oh no')</script>", "oh no"),
        ("<script>throw new Error('thrown')</script>", "Uncaught"),
        ('<img src="http://127.0.0.1:9/x.png">', "asked for http://127.0.0.1:9/x.png"),
        ('<link rel="stylesheet" href="other.css">', "asked for file:"),
    ],
)
def test_what_a_page_does_wrong_is_told(browser, tmp_path, body, complaint):
    browser.open(write(tmp_path, body), 1280)
    assert any(complaint in one for one in browser.errors)


def test_what_a_policy_refuses_is_told(browser, tmp_path):
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    browser.open(write(tmp_path, "<script>document.title = 'run'</script>", policy), 1280)
    assert any("Content Security Policy" in one for one in browser.errors)
    assert browser.evaluate("document.title") != "run"


def test_dark_and_light_are_what_the_page_is_asked_for(browser, tmp_path):
    page = write(tmp_path, "words")
    for dark in (False, True):
        browser.open(page, dark=dark)
        assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
