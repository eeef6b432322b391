"""Laws of the report: every depth is there, nothing of a stranger's is code, nothing is fetched."""

import re

import numpy as np
import pytest

from pipelines import page, report
from pipelines.page import display

from ..pages import Outline

HOSTILE = '<script>alert(1)</script>" onerror="alert(2)'
RULE = {"tolerance_iou": 0.01, "max_latency_ms": None, "resamples": 2000}


def metrics_of(names=("L1", "L2", "mean"), depth: int | None = 1):
    row = {"iou_image": 0.8, "iou_image_low": 0.75, "iou_image_high": 0.85, "iou_pixels": 0.81}
    row |= {"iou_paper": 0.9, "dice_image": 0.88, "dice_pixels": 0.89, "dice_paper": 0.94}
    row |= {"parameters": 33009, "macs": 92307456, "latency_ms": 8.3, "latency_p95_ms": 93.2}
    row |= {"images_per_s": 136.7, "peak_memory_mib": 4.1, "size_mib": 0.15}
    machine = {"device": "cpu", "processor": "a <b>processor</b>", "cores": 2, "threads": 2}
    machine |= {"precision": "fp32", "size_px": 96, "latency_rounds": 30, "throughput_batch": 8}
    return {
        "recommended_depth": depth,
        "recommendation": "L1 is recommended: iou_image 0.800.",
        "num_images": 3,
        "depths": {name: row | {"latency_ms": 8.3 + index} for index, name in enumerate(names)},
        "machine": machine,
        "test": {"sha256": "0" * 64, "kinds": {"a": 3}},
        "classes": {name: {HOSTILE: 0.8, "rare": None} for name in names},
    }


def page_of(metrics, rule=RULE, dtype=np.uint8, channels=3, side=20, num_classes=2):
    names = list(metrics["depths"])
    rng = np.random.default_rng(0)
    rows = [{"id": f"{HOSTILE}{i}", "kind": "<i>k</i>"} | {f"iou_{n}": 0.1 * i for n in names} for i in range(3)]
    samples = [
        report.Sample(
            rank,
            rows[index],
            rng.integers(0, 255, (side, side + 5, channels)).astype(dtype),
            rng.integers(0, num_classes, (side, side + 5)).astype(np.uint8),
            {name: rng.integers(0, num_classes, (side, side + 5)).astype(np.uint8) for name in names},
        )
        for index, rank in enumerate(("best", "median", "worst"))
    ]
    extremes = {name: {"best": 2, "median": 1, "worst": 0} for name in names}
    return report.build_report(metrics, rows, samples, extremes, "L1", rule, {"Model <x>": "<y>", "Epoch": None})


def test_the_page_is_well_formed_and_says_what_it_shows():
    outline = Outline(page_of(metrics_of()))
    assert outline.open == []
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("h1") == tags.count("title") == tags.count("main") == 1
    assert dict(outline.tags)["html"]["lang"] == "en"
    images = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert len(images) == 3 * (2 + 3)
    assert all(attributes["alt"] for attributes in images)


def test_the_page_needs_no_network_and_runs_nothing():
    outline = Outline(page_of(metrics_of()))
    for tag, attributes in outline.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:image/png", "data:", "#"))


def test_a_stranger_s_names_are_shown_and_not_obeyed():
    page = page_of(metrics_of())
    assert "<script>" not in page
    assert "<i>k</i>" not in page
    assert "<b>processor" not in page
    assert f"{HOSTILE}0" in Outline(page).text


@pytest.mark.parametrize("depth", [1, 2, None])
def test_every_depth_has_its_row_and_the_recommended_one_is_marked(depth):
    metrics = metrics_of(depth=depth)
    page = page_of(metrics)
    first = page[page.index("<table>") : page.index("</table>")]
    assert re.findall(r'<th scope="row">(\w+)', first) == ["L1", "L2", "mean"]
    assert re.findall(r'class="chosen">\s*<th scope="row">(\w+)', first) == ([f"L{depth}"] if depth else [])
    assert page.index(metrics["recommendation"]) < page.index("<table>")


def test_one_depth_alone_makes_a_page():
    page = page_of(metrics_of(names=("L4",), depth=4))
    assert "L4 (recommended)" in page
    assert "mean of heads" not in page


@pytest.mark.parametrize(
    ("dtype", "channels", "side"),
    [(np.uint16, 1, 20), (np.uint8, 2, 7), (np.uint16, 5, 700), (np.uint8, 3, 288), (np.float32, 3, 20)],
)
def test_any_image_can_be_shown(dtype, channels, side):
    page = page_of(metrics_of(), dtype=dtype, channels=channels, side=side, num_classes=3)
    assert "taken for another class" in page


def test_floats_are_shown_as_whole_numbers_of_the_same_picture_are():
    pixels = np.random.default_rng(0).integers(0, 2**16, (20, 20, 3)).astype(np.uint16)
    shown = display(pixels)
    for floats in (pixels / np.float32(2**20), pixels.astype(np.float32) * 1e9 - 1e13):
        assert np.abs(display(floats.astype(np.float32)).astype(int) - shown).max() <= 1
    assert shown.min() == 0
    assert shown.max() == 255
    assert not display(np.full((4, 4, 3), -7.5, np.float32)).any()


def test_the_limit_of_latency_is_named_where_it_is_set():
    assert "evaluate.max_latency_ms" in page_of(metrics_of(), rule=RULE | {"max_latency_ms": 9.5})
    assert "evaluate.max_latency_ms" not in page_of(metrics_of())


def test_the_same_numbers_make_the_same_page():
    assert page_of(metrics_of()) == page_of(metrics_of())


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_complaint_and_nothing_sticks_out(browser, tmp_path, width):
    (tmp_path / "report.html").write_text(page_of(metrics_of()), encoding="utf-8")
    browser.open(tmp_path / "report.html", width)
    assert browser.errors == []
    assert browser.overflowing() == []
    assert browser.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")


def test_overlay_tells_found_extra_missed_and_confused_apart():
    base = np.zeros((report.SIDE_PX, report.SIDE_PX, 3), np.uint8)
    mask, mask_hat = (np.zeros(base.shape[:2], np.uint8) for _ in range(2))
    mask[:, :40] = 1
    mask_hat[:, 20:60] = 1
    mask_hat[:10, 20:40] = 2
    colours = report.overlay(base, mask, mask_hat)
    background, found, extra, confused = (colours[y, x] for y, x in ((100, 100), (100, 30), (100, 50), (5, 30)))
    assert background.max() == 0
    assert found.argmax() == 2  # blue
    assert extra.argmin() == 2  # yellow
    assert confused.argmin() == 1  # pink
    assert len(np.unique(colours[:, :20].reshape(-1, 3), axis=0)) == 2  # stripes where something was missed


def test_the_depth_table_is_aligned_and_marks_the_recommended_depth():
    lines = report.depth_table(metrics_of()).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line[:6].split() for line in lines[1:]] == [[">", "L1"], ["L2"], ["mean"]]
    assert len(lines[0]) <= 120


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (33009, "33.0 k"), (9163329, "9.16 M"), (305e6, "305 M"), (1e9, "1.00 G")],
)
def test_counts_are_shortened_to_three_digits(number, text):
    assert page.short(number) == text
