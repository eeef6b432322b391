"""Laws of the report in a browser: the viewer obeys mouse and keys, nothing sticks out, no picture needs a script."""

import base64
import hashlib
import io
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.pages.reports import HOSTILE, named, page_of, smallest, whole

pytestmark = pytest.mark.browser

NAMES = ("L1", "L2", "L3", "L4", "mean")
HOSTILE_IDS = (
    HOSTILE,
    "' onmouseover='alert(3)' x='",
    "{{ 7 * 7 }}{% for x in y %}",
    "\u202egnp.exe\u202c and \u05e9\u05dc\u05d5\u05dd",
    "n" * 240,
    "</script></svg></style><b>bold",
)
# Of WCAG 2: the contrast of an element's ink with the first background that is not transparent below it.
CONTRASTS = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((one) => one / 255)
    .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
  const low = [];
  for (const one of document.querySelectorAll("main *")) {
    const words = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!words || one.closest("svg, style, [hidden], option") || !one.getClientRects().length) continue;
    let below = one;
    while (below && (parse(getComputedStyle(below).backgroundColor)[3] ?? 1) === 0) below = below.parentElement;
    const paper = light(parse(getComputedStyle(below ?? document.body).backgroundColor));
    const ink = light(parse(getComputedStyle(one).color));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${one.outerHTML.slice(0, 100)}`);
  }
  return low;
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page_of(whole(NAMES, depth=2), ids=list(HOSTILE_IDS), side=48), encoding="utf-8")
    return path


def stage(browser) -> np.ndarray:
    """The pixels of the viewer's picture."""
    box = browser.evaluate(
        "(() => { const one = document.getElementById('stage').getBoundingClientRect();"
        "return [one.x + scrollX, one.y + scrollY, one.width, one.height]; })()"
    )
    clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 1}
    data = browser.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def press(browser, key: str) -> None:
    codes = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, " ": 32, "Tab": 9}
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])


def value_text(browser) -> str:
    return browser.evaluate("document.getElementById('depth').getAttribute('aria-valuetext')")


def said(browser) -> str:
    return browser.evaluate("document.getElementById('stage-said').textContent")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_complaint_and_nothing_sticks_out(browser, page, width, dark):
    browser.open(page, width, dark=dark)
    assert browser.errors == []
    assert browser.overflowing() == []
    assert browser.evaluate(CONTRASTS) == []


@pytest.fixture(scope="module", params=[1, 11, 30])
def street(request, tmp_path_factory):
    """A report of as many classes, and of two dozen images."""
    path = tmp_path_factory.mktemp("street") / "report.html"
    metrics, ids = named(whole(NAMES, depth=2), request.param), [f"scene {number:02}" for number in range(24)]
    path.write_text(page_of(metrics, ids=ids, scenes=request.param), encoding="utf-8")
    return path


# How far elements stick out of another at its left and right, in px.
BEYOND = """((inside, all) => {
  const frame = inside.getBoundingClientRect();
  return [...all].map((one) => one.getBoundingClientRect())
    .map((box) => Math.max(frame.left - box.left, box.right - frame.right));
})"""


@pytest.mark.parametrize("width", [390, 1280])
def test_ends_of_the_slider_and_the_last_picture_lie_inside_the_frame(browser, street, width):
    browser.open(street, width)
    assert browser.errors == []
    assert browser.overflowing() == []
    words = """[...document.querySelectorAll('.ticks span')].map((one) => {
      const range = document.createRange(); range.selectNodeContents(one); return range; })"""
    assert max(browser.evaluate(f"{BEYOND}(document.querySelector('.stage'), {words})")) <= 0
    browser.evaluate("document.querySelector('#strip label:last-child input').click()")
    assert "scene 23" in said(browser)
    last = f"{BEYOND}(document.querySelector('#strip'), document.querySelectorAll('#strip label:last-child svg'))"
    assert max(browser.evaluate(last)) <= 0
    classes = "[...document.querySelectorAll('.classes span')].map((one) => getComputedStyle(one).backgroundColor)"
    shown = browser.evaluate(classes)
    assert len(shown) == len(set(shown)) == len(browser.evaluate("[...document.querySelectorAll('.classes li')]"))


def test_on_a_phone_tables_say_that_they_scroll_and_the_recommended_depth_stays(browser, street):
    browser.open(street, 390)
    hint = "(one) => parseFloat(getComputedStyle(one, '::before').height)"
    tables = browser.evaluate(
        f"[...document.querySelectorAll('.scroll')].map((one) => [one.scrollWidth > one.clientWidth, ({hint})(one)])"
    )
    assert any(scrolls for scrolls, _ in tables)
    assert all((height > 20) == scrolls for scrolls, height in tables)
    for side in (0, 1e6):
        stay = "th.named, td.chosen, thead th.chosen, tr.chosen > th"
        seen = browser.evaluate(f"""[...document.querySelectorAll('.scroll')].flatMap((table) => {{
          table.scrollLeft = {side};
          return {BEYOND}(table, table.querySelectorAll('{stay}')); }})""")
        assert len(seen) > 20
        assert max(seen) <= 1
        apart = browser.evaluate("""[...document.querySelectorAll('td.chosen')].map((one) =>
          one.getBoundingClientRect().left - one.parentElement.firstElementChild.getBoundingClientRect().right)""")
        assert min(apart) >= -1
    browser.open(street, 1280)
    assert browser.evaluate(f"({hint})(document.querySelector('.scroll'))") == 0


def test_an_outline_that_is_too_fine_is_shown_by_the_filled_mask(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page_of(whole(("L1",)), num_images=1, side=200), encoding="utf-8")
    browser.open(path)
    assert browser.evaluate("document.getElementById('too-fine').hidden") is False
    seen = {}
    for mode in ("y", ""):
        browser.evaluate(f"document.querySelector('input[name=mode][value=\"{mode}\"]').click()")
        seen[mode] = stage(browser)
    assert np.array_equal(seen["y"], seen[""])
    browser.evaluate("document.getElementById('outlined').click()")
    assert np.abs(stage(browser) - seen[""]).mean() > 1
    assert browser.errors == []


def test_masks_are_shown_filled_or_as_outlines(browser, street):
    browser.open(street)
    seen = []
    for control in ("input[name=mode][value=m]", "#filled"):
        browser.evaluate(f"document.querySelector('{control}').click()")
        seen.append(stage(browser))
    assert np.abs(seen[0] - seen[1]).mean() > 1
    assert browser.errors == []


def test_the_slider_moves_through_the_depths_by_keys(browser, page):
    browser.open(page)
    browser.evaluate("document.getElementById('depth').focus()")
    press(browser, "Home")
    seen, texts = [stage(browser)], [value_text(browser)]
    for _ in NAMES[1:]:
        press(browser, "ArrowRight")
        seen.append(stage(browser))
        texts.append(value_text(browser))
    assert [text.split(",")[0] for text in texts] == ["L1", "L2", "L3", "L4", "mean of heads"]
    for one, other in pairwise(seen):
        assert np.abs(one - other).mean() > 1
    press(browser, "Home")
    assert np.array_equal(stage(browser), seen[0])
    assert value_text(browser) == texts[0]
    assert browser.errors == []


def test_each_way_to_look_shows_another_picture_and_the_image_alone_is_the_same_at_every_depth(browser, page):
    browser.open(page)
    seen = {}
    for mode in ("e", "m", "y", ""):
        browser.evaluate(f"document.querySelector('input[name=mode][value=\"{mode}\"]').click()")
        seen[mode] = stage(browser)
    for one in seen:
        assert all(one == other or np.abs(seen[one] - seen[other]).mean() > 1 for other in seen)
    browser.evaluate("document.getElementById('outlined').click()")
    bare = stage(browser)
    assert np.abs(bare - seen[""]).mean() > 1
    browser.evaluate("document.getElementById('depth').focus()")
    press(browser, "End")
    assert np.array_equal(stage(browser), bare)
    assert browser.errors == []


def test_the_colours_of_the_stage_are_those_of_the_error_map(browser, tmp_path):
    metrics = whole(("L1",))
    path = tmp_path / "report.html"
    path.write_text(page_of(metrics, num_images=1, side=20, dtype=np.float32), encoding="utf-8")
    browser.open(path)
    browser.evaluate("document.getElementById('outlined').click()")
    pixels = stage(browser)
    blue = (pixels[..., 2] - pixels[..., 0] > 40).mean()
    yellow = (pixels[..., 1] - pixels[..., 2] > 100).mean()
    assert 0.15 < blue < 0.35  # of noise a quarter is found, a quarter extra
    assert 0.15 < yellow < 0.4


def test_an_image_is_picked_by_its_id_and_by_its_picture(browser, page):
    browser.open(page)
    options = browser.evaluate("[...document.querySelectorAll('#sample option')].map((one) => one.textContent)")
    assert options == sorted(HOSTILE_IDS)
    for id_ in (HOSTILE_IDS[-1], HOSTILE_IDS[4]):
        browser.evaluate(
            f"(() => {{ const s = document.getElementById('sample'); s.selectedIndex = {options.index(id_)};"
            "s.dispatchEvent(new Event('change')); })()"
        )
        assert said(browser).startswith(f"{id_} – L1: IoU ")  # noqa: RUF001
        shown = "[...document.querySelectorAll('.sample')].filter((one) => one.getClientRects().length)"
        assert browser.evaluate(f"{shown}.map((one) => one.querySelector('h3 code').textContent)") == [id_]
        assert browser.overflowing() == []
    browser.evaluate("document.querySelector('input[name=picked]').focus()")
    before = stage(browser)
    browser.evaluate("document.querySelector('input[name=picked]').click()")
    assert said(browser).startswith(HOSTILE_IDS[0])
    assert np.abs(stage(browser) - before).mean() > 1
    press(browser, "ArrowRight")
    assert said(browser).startswith(HOSTILE_IDS[1])
    assert browser.errors == []


def test_every_control_is_reached_by_the_tab_key_and_shows_that_it_is(browser, page):
    browser.open(page)
    browser.evaluate("document.querySelector('h2').tabIndex = -1, document.querySelector('h2').focus()")
    reached = set()
    for _ in range(12):
        press(browser, "Tab")
        one = "document.activeElement"
        reached.add(browser.evaluate(f"{one}.id || {one}.name || {one}.tagName"))
        ring = "(e) => ['outlineStyle'].some((k) => getComputedStyle(e)[k] !== 'none')"
        assert browser.evaluate(f"({ring})({one}) || ({ring})({one}.nextElementSibling)")
    assert {"depth", "mode", "filled", "outlined", "sample", "picked"} <= reached


def test_without_scripts_every_picture_of_the_chosen_images_is_there(browser, page):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        drawn = (
            "[...document.querySelectorAll('.sample figure svg')]"
            ".filter((one) => one.getBoundingClientRect().width > 50).length"
        )
        assert browser.evaluate(drawn) == len(HOSTILE_IDS) * (1 + len(NAMES))
        assert browser.evaluate("getComputedStyle(document.getElementById('viewer')).display") == "none"
        assert browser.overflowing() == []
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_on_paper_every_image_is_there_and_nothing_that_only_a_screen_can_use(browser, page):
    browser.open(page, 720)  # the width of A4 between its margins
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        shown = "[...document.querySelectorAll('{}')].filter((one) => one.getClientRects().length).length"
        assert browser.evaluate(shown.format(".sample")) == len(HOSTILE_IDS)
        assert browser.evaluate(shown.format("#viewer, nav, input, select")) == 0
        widths = "[...document.querySelectorAll('table')].map((one) => one.getBoundingClientRect().width)"
        assert max(browser.evaluate(widths)) <= browser.evaluate("innerWidth") + 1
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
    sheets = base64.b64decode(browser.call("Page.printToPDF", printBackground=False)["data"])
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", sheets)) <= 12


def test_the_smallest_report_has_a_viewer_without_a_slider(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page_of(smallest(), num_images=1), encoding="utf-8")
    for width in (390, 1280):
        browser.open(path, width)
        assert browser.errors == []
        assert browser.overflowing() == []
        assert browser.evaluate("document.getElementById('depth')") is None
        assert "L1: IoU 0.900" in said(browser)


def test_a_strangers_script_does_not_run_even_where_it_gets_into_the_page(browser, page, tmp_path):
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    assert f"sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}" in text
    (tmp_path / "report.html").write_text(
        text.replace("<h1>", "<script>document.title = 'run'</script><h1>"), encoding="utf-8"
    )
    browser.open(tmp_path / "report.html")
    assert browser.evaluate("document.title") != "run"
    assert said(browser)  # and ours does


def test_objects_are_shown_in_colours_predicted_and_true(browser, page):
    browser.open(page)
    seen = []
    for mode in ("m", "n", "t"):
        browser.evaluate(f"document.querySelector('input[name=mode][value={mode}]').click()")
        seen.append(stage(browser))
    assert min(np.abs(one - other).mean() for one, other in pairwise(seen)) > 1
    assert "objects" in said(browser)
    assert browser.errors == []
