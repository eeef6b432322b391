"""The page in a browser: an image is chosen or dropped, the slider moves by mouse and keys, masks are saved."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.pages.test_viewer import CONTRASTS, press
from tests.pipelines.trying.models import serving, write_model, write_report
from tests.waiting import wait_for

pytestmark = pytest.mark.browser


def text(browser, selector: str) -> str:
    return browser.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def wait_until_done(browser, name: str) -> None:
    """All depths of the image of this name are there, or the page says what is wrong."""
    done = "document.getElementById('status').textContent === '' && document.getElementById('name').textContent"
    wait_for(lambda: browser.evaluate(f"({done}) === {json.dumps(name)}"))


def choose(browser, path) -> None:
    element = browser.call("Runtime.evaluate", expression="document.getElementById('file')")["result"]["objectId"]
    browser.call("DOM.setFileInputFiles", files=[str(path)], objectId=element)


NIGHTLY = [pytest.param(number, marks=pytest.mark.nightly) for number in (1, 30)]


@pytest.mark.parametrize("num_classes", [11, *NIGHTLY])
def test_an_image_is_tried_from_the_first_look_to_the_saved_mask(browser, tmp_path, num_classes):
    model = write_model(tmp_path, num_classes=num_classes)
    write_report(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (180, 240, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "my scan & co.png")
    (tmp_path / "words.png").write_text("no image")
    with serving(model) as server:
        for width in (390, 1280):
            browser.open(server.address, width)
            wait_until_done(browser, "image 1")  # the median of the report comes by itself
            choose(browser, tmp_path / "my scan & co.png")
            wait_until_done(browser, "my scan & co.png")
            assert browser.errors == []
            assert browser.overflowing() == []
            assert browser.evaluate(CONTRASTS) == []
        assert len(browser.evaluate("[...document.querySelectorAll('.classes li')]")) == (
            num_classes - (num_classes > 1)
        )
        assert text(browser, ".beside b").startswith("L1, recommended: ")
        layers = "[...document.querySelectorAll('.layer')].map((one) => one.getAttribute('href'))"
        now, beside = browser.evaluate(layers)
        assert now == beside
        press(browser, "ArrowRight")
        assert text(browser, ".now b").startswith("L2: ")
        assert "of the pixels differ from L1" in text(browser, ".now span")
        now, kept = browser.evaluate(layers)
        assert now != kept == beside
        link = "document.querySelector('#saves a')"
        saved = tmp_path / "saved/my scan & co-L2.png"
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(saved.parent))
        browser.evaluate(f"{link}.click()")
        wait_for(saved.is_file)
        with Image.open(saved) as mask:
            assert mask.size == (240, 180)
        press(browser, "ArrowLeft")
        assert text(browser, ".now b").startswith("L1, recommended: ")

        zoom = "const z = document.getElementById('zoom'); z.value = '{}'; z.dispatchEvent(new Event('input'));"
        both = "[...document.querySelectorAll('.pane')].map((one) => one.scrollLeft)"
        browser.evaluate(f"(() => {{ {zoom.format(4)} document.querySelector('.pane').scrollLeft = 100; }})()")
        wait_for(lambda: browser.evaluate(both) == [100, 100])
        assert browser.evaluate("document.querySelector('.pane svg').getBoundingClientRect().width") == 960
        # The second pane's event is late, as on a busy machine: the first, which moved on, is not called back.
        late = """(() => { const [one, other] = document.querySelectorAll('.pane');
          one.scrollLeft = 120; other.dispatchEvent(new Event('scroll')); return one.scrollLeft; })()"""
        assert browser.evaluate(late) == 120
        wait_for(lambda: browser.evaluate(both) == [120, 120])
        browser.evaluate("document.querySelectorAll('.pane')[1].scrollLeft = 100")  # either leads
        wait_for(lambda: browser.evaluate(both) == [100, 100])

        browser.evaluate("document.querySelector('.pane').scrollIntoView()")
        left, top = (browser.evaluate(f"document.querySelector('.pane').getBoundingClientRect().{one}") for one in "xy")
        for kind, moved in (("mousePressed", 0), ("mouseMoved", -40), ("mouseReleased", -40)):
            at = {"x": left + 200 + moved, "y": top + 60, "button": "left", "buttons": 1, "clickCount": 1}
            browser.call("Input.dispatchMouseEvent", type=kind, **at)
        wait_for(lambda: browser.evaluate(both) == [140, 140])

        drop = """(() => { const data = new DataTransfer(); data.items.add(new File(['no image'], 'words.png'));
          document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true})); })()"""
        browser.evaluate(drop)
        wait_for(lambda: not browser.evaluate("document.getElementById('failed').hidden"))
        assert text(browser, "#failed").startswith("words.png: found no image but a file that begins with ")
        assert browser.overflowing() == []
        (complaint,) = browser.errors  # Chromium tells of the refusal too
        assert "400" in complaint
