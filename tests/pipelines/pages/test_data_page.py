"""The data report: made of any set, safe with a stranger's names, of bounded size, and seen in a real browser."""

import csv
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from pipelines import prepare as prepare_stage
from pipelines.core.files import write_json
from pipelines.core.params import load_params
from pipelines.dataset.fingerprint import comparable, read_fingerprint, write_fingerprint
from pipelines.pages import __main__ as pages_stage
from pipelines.pages.data_page import build_page, outline_path
from pipelines.planning.advice import advise
from pipelines.prepare import SPLITS, prepare
from tests.conftest import REPOSITORY
from tests.pages import Outline
from tests.pipelines.dataset.made import make_fingerprint, make_samples
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.manifest import Manifest, SplitFacts
from unetpp.files import sha256

PARAMS = load_params(REPOSITORY / "params.yaml").prepare.model_copy(update={"size": 32})
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)<',
    "' onmouseover='alert(3)' x='",
    "{{ 7 * 7 }}{% for x in y %}",
    "\u202egnp.exe\u202c and \u05e9\u05dc\u05d5\u05dd",
    "n" * 200,
    "a b\tc\nd",
    "&lt;b&gt; &amp; $x^2$ \\frac{1}{2}",
    "javascript:alert(4)",
    "\u200bzero width",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A prepared folder of images with such names, twenty of each in one way or another, and broken ones."""
    folder = tmp_path_factory.mktemp("hostile")
    raw, rng = folder / "raw", np.random.default_rng(0)
    for name in ("images", "masks"):
        (raw / name).mkdir(parents=True)
    for number in range(40):
        id = f"{HOSTILE[number % len(HOSTILE)]} {number}"
        image, mask = rng.integers(0, 60, (48, 64), np.uint8), np.zeros((48, 64), np.uint8)
        mask[10:20, 10:30], mask[30:40, 40:50] = 1, 2
        image[mask > 0] += 150
        Image.fromarray(image).save(raw / f"images/{id}.png")
        Image.fromarray(mask).save(raw / f"masks/{id}.png")
    for id in HOSTILE[:3]:
        (raw / f"images/broken {id}.png").write_text(f"{id} is no image")
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(raw / f"masks/broken {id}.png")
    (raw / "manifest.json").write_text("{}")
    prepare(PARAMS, raw, folder / "prepared")
    train = Split(folder / "prepared/train.arrow").ids
    with (folder / "prepared/duplicates.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "other", "distance", "correlation"))
        writer.writerows((one, other, 2, 0.99) for one, other in pairwise(train[:13]))
    write_fingerprint(folder / "prepared", advise)
    found = read_fingerprint(folder / "prepared")
    write_json(folder / "reports/data.json", comparable(found))
    (folder / "reports/data.html").write_text(build_page(found, folder / "prepared"), encoding="utf-8")
    return folder


def page_of(folder):
    return (folder / "reports/data.html").read_text(encoding="utf-8")


def test_a_strangers_names_are_shown_and_not_obeyed(hostile):
    page = page_of(hostile)
    outline = Outline(page)
    assert outline.open == []
    for tag, attributes in outline.tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "form"), attributes
        assert not any(name.startswith("on") for name in attributes), attributes
        assert "javascript:" not in (attributes.get("href") or "") + (attributes.get("src") or "")
    for name in HOSTILE[:3]:
        assert name in outline.text  # as words: among duplicates, overlays, and what was set aside
    assert "49{% for" not in outline.text  # no template of ours reads their names
    assert "broken <img src=x onerror=alert(1)>" in outline.text


def test_the_page_fetches_nothing_and_its_policy_says_so(hostile):
    page = page_of(hostile)
    outline = Outline(page)
    policy = next(each["content"] for tag, each in outline.tags if tag == "meta" and "http-equiv" in each)
    assert policy.startswith("default-src 'none'; ")
    for _, attributes in outline.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                assert value.startswith(("data:image/", "#")), value
    styles = re.findall(r"<style.*?</style>", page, re.DOTALL) + re.findall(r'style="[^"]*"', page)
    assert not [one for one in styles if re.search(r"url\((?!#)|@import", one)]
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {
        "http://www.w3.org/2000/svg",  # names of formats, not addresses
        "http://www.w3.org/1999/xlink",
    }


def test_ids_are_unique_in_the_page_and_what_is_referred_to_is_there(hostile):
    outline = Outline(page_of(hostile))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in outline.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        if "xlink:href" in attributes:
            assert attributes["xlink:href"].removeprefix("#") in ids


def test_pictures_have_words_for_those_who_do_not_see_them(hostile):
    outline = Outline(page_of(hostile))
    images = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert len(images) >= 2 * 3 + 2 * 8  # overlays of each split, and pairs
    assert all(attributes["alt"] for attributes in images)
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("h1") == tags.count("title") == tags.count("main") == 1
    assert all(
        attributes.get("role") == "img" or attributes.get("aria-hidden")
        for tag, attributes in outline.tags
        if tag == "svg"
    )


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_complaint_and_nothing_sticks_out(hostile, browser, width, dark):
    browser.open(hostile / "reports/data.html", width=width, dark=dark)
    assert browser.errors == []
    assert browser.overflowing() == []
    # Each picture was decoded, and ink differs from paper.
    assert browser.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    ink, paper = (browser.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    levels = [np.mean([int(part) for part in re.findall(r"\d+", one)[:3]]) for one in (ink, paper)]
    assert (levels[0] > levels[1] + 150) if dark else (levels[1] > levels[0] + 150)


@pytest.mark.browser
def test_masks_are_shown_filled_or_as_outlines_or_not_at_all(hostile, browser):
    browser.open(hostile / "reports/data.html")
    seen = {}
    for switch in ("outlines", "filled", "bare"):  # the first is as the page begins
        if switch != "outlines":
            browser.evaluate(f"document.getElementById('{switch}').click()")
        shown = "[...document.querySelectorAll('.picture {}')].some((one) => one.getClientRects().length)"
        seen[switch] = [browser.evaluate(shown.format(what)) for what in ("svg", ".filled")]
    assert seen == {"outlines": [True, False], "filled": [False, True], "bare": [False, False]}


def test_the_same_data_give_the_same_bytes(hostile, tmp_path):
    shutil.copytree(hostile / "prepared", tmp_path / "prepared")
    write_fingerprint(tmp_path / "prepared", advise)
    page = build_page(read_fingerprint(tmp_path / "prepared"), tmp_path / "prepared")
    assert page == page_of(hostile)
    assert sha256(tmp_path / "prepared/fingerprint.json") == sha256(hostile / "prepared/fingerprint.json")


def test_metrics_are_few_and_those_of_the_fingerprint(hostile):
    metrics = json.loads((hostile / "reports/data.json").read_text())
    fingerprint = json.loads((hostile / "prepared/fingerprint.json").read_text())
    assert metrics["num_images"]["all"] == 40
    assert metrics["suggested_depth"] == fingerprint["advice"]["depth"]
    assert metrics["near_duplicates"] == 12
    assert metrics["quarantined_files"] == 3
    assert metrics["objects"] == 80
    assert len(json.dumps(metrics)) < 600


def test_every_warning_suggestion_and_quarantined_reason_is_on_the_page(hostile):
    text = " ".join(Outline(page_of(hostile)).text.split())
    fingerprint = json.loads((hostile / "prepared/fingerprint.json").read_text())
    lines = fingerprint["findings"]["warnings"] + fingerprint["findings"]["notes"]
    lines += [one[key] for one in fingerprint["advice"]["suggestions"] for key in ("key", "reason")]
    lines += [one["example"] for one in fingerprint["quarantine"]["reasons"]]
    assert len(lines) > 8
    for line in lines:
        assert " ".join(line.split()) in text


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A prepared folder without tables: six images of each kind in each split, some of noise."""
    folder = tmp_path_factory.mktemp("small") / "prepared"
    folder.mkdir()
    rng = np.random.default_rng(0)
    splits = {}
    for name in SPLITS:
        with SplitWriter(folder / f"{name}.arrow") as writer:
            for number in range(18):
                image = rng.integers(0, 2**16, (300, 200, 3), np.uint16)
                mask = rng.integers(0, 5, (300, 200), np.uint8)
                writer.add(f"{name}_{number}", ("a", "b", "")[number % 3], image, mask)
        splits[name] = SplitFacts(18, sha256(folder / f"{name}.arrow"))
    Manifest(size=None, channels=3, num_classes=5, splits=splits, raw_sha256="0" * 64).write(folder)
    return folder


@pytest.mark.parametrize(
    "name", ["many sizes", "one size", "size null", "large objects", "rare and small", "classes", "no objects"]
)
def test_a_page_is_made_of_any_fingerprint(fingerprints, small, name):
    page = build_page(fingerprints[name], small)
    assert Outline(page).open == []
    assert page.count('class="chosen"') == (name != "no objects")


def test_the_page_stays_small_whatever_the_number_of_images_and_their_contents(small):
    """20,000 samples, and pictures and masks of noise, which compress worst."""
    samples = make_samples(500, num_classes=4)
    many = {column: np.tile(values, 40) for column, values in samples.items()}
    many["id"] = np.array([f"{'long ' * 30}{number}" for number in range(20_000)], object)
    rows = [{"id": f"train_{n}", "other": f"train_{n + 1}", "distance": 1, "correlation": 0.99} for n in range(15)] * 50
    broken = [
        {"id": str(n), "file": f"{'x' * 100}{n}.png", "reason": f"reason {chr(97 + n % 26)}"} for n in range(5000)
    ]
    fingerprint = make_fingerprint(many, num_classes=5, duplicates=rows, quarantined=broken)
    page = build_page(fingerprint, small)
    assert 50_000 < len(page.encode()) < 3_000_000
    assert "too fine for outlines" in page
    assert len(json.dumps(fingerprint)) < 200_000


def test_an_outline_encloses_what_it_is_the_outline_of():
    inside = np.zeros((7, 9), bool)
    inside[2:4, 3:6] = True
    assert sorted(re.findall(r"M\d+ \d+[hv]\d+", outline_path(inside))) == ["M3 2h3", "M3 2v2", "M3 4h3", "M6 2v2"]
    assert outline_path(np.ones((3, 3), bool)) == outline_path(np.zeros((3, 3), bool)) == ""
    rng = np.random.default_rng(0)
    noise = rng.random((20, 30)) > 0.5
    length = sum(int(run) for run in re.findall(r"[hv](\d+)", outline_path(noise)))
    assert length == np.sum(noise[1:] != noise[:-1]) + np.sum(noise[:, 1:] != noise[:, :-1])


def test_the_commands_write_metrics_and_page_and_print_the_warnings(hostile, tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text().replace("size: 96 ", "size: 32 "))
    monkeypatch.chdir(tmp_path)
    arguments = ["--raw", str(hostile / "raw"), "--out", "out", "--split", "split.csv", "--metrics", "a/b.json"]
    monkeypatch.setattr("sys.argv", ["prepare", *arguments])
    prepare_stage.main()
    fingerprint = read_fingerprint(tmp_path / "out")
    printed = capsys.readouterr().out
    for warning in fingerprint["findings"]["warnings"]:
        assert warning in printed
    assert json.loads((tmp_path / "a/b.json").read_text()) == comparable(fingerprint)
    monkeypatch.setattr("sys.argv", ["pages", "data", "--of", "out", "--out", "a/data.html"])
    pages_stage.main()
    assert (tmp_path / "a/data.html").read_text() == build_page(fingerprint, tmp_path / "out")
