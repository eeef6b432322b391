"""Laws of the report: every depth is there, nothing of a stranger's is code, nothing is fetched, all can be reached."""
# ruff: noqa: RUF001 - dashes and minus signs are meant

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.core.numbers import points, short
from pipelines.evaluation.scores import reliability_rows
from pipelines.pages import depth_page, html_page, viewer
from tests.pages import Outline
from tests.pipelines.pages.reports import HOSTILE, RULE, named, page_of, smallest, whole
from unetpp.images import display
from unetpp.images.display import ERRORS, error_map, stripe


@pytest.fixture(scope="module")
def made():
    """The page of a report in which nothing is missing."""
    return page_of(whole())


def test_the_page_is_well_formed_and_says_what_it_shows(made):
    outline = Outline(made)
    assert outline.open == []
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("h1") == tags.count("title") == tags.count("main") == 1
    assert dict(outline.tags)["html"]["lang"] == "en"
    pictures = [each for tag, each in outline.tags if tag == "svg" and each.get("role") == "img"]
    assert len(pictures) == 3 + 1 + 3 + 3 * (1 + 3)  # charts, stage, strip, rows
    assert all(each.get("aria-label") or each.get("aria-labelledby") for each in pictures)
    ids = [each["id"] for _, each in outline.tags if "id" in each]
    assert len(ids) == len(set(ids))
    for tag, each in outline.tags:
        for name in ("aria-labelledby", "for", "href"):
            if name in each:
                target = each[name].removeprefix("#")
                assert target in ids or target.startswith("data:image/"), (tag, each)


def test_every_control_has_a_name(made):
    outline = Outline(made)
    labelled = {each["for"] for tag, each in outline.tags if tag == "label" and "for" in each}
    for number, (tag, each) in enumerate(outline.tags):
        if tag in ("input", "select"):
            assert each.get("id") in labelled or outline.tags[number - 1][0] == "label", each


def test_the_page_needs_no_network_and_runs_one_script_of_ours_alone(made):
    outline = Outline(made)
    for tag, attributes in outline.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:image/", "data:", "#"))
    scripts = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    assert len(scripts) == [tag for tag, _ in outline.tags].count("script") == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(each["content"] for tag, each in outline.tags if tag == "meta" and "http-equiv" in each)
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}'; ")


def test_a_stranger_s_names_are_shown_and_not_obeyed(made):
    assert "<script>alert" not in made
    assert "<i>k</i>" not in made
    assert "<b>processor" not in made
    assert f"{HOSTILE}0" in Outline(made).text


@pytest.mark.parametrize("depth", [1, 2, None])
def test_every_depth_has_its_row_and_the_recommended_one_is_marked(depth):
    metrics = whole(depth=depth)
    text = page_of(metrics)
    first = text[text.index("<table>") : text.index("</table>")]
    assert re.findall(r'<th scope="row">(\w+)', first) == ["L1", "L2", "mean"]
    assert re.findall(r'class="chosen">\s*<th scope="row">(\w+)', first) == [f"L{depth or 1}"]
    assert ("<small>recommended" in first, "<small>nearest" in first) == (depth is not None, depth is None)
    assert text.index(metrics["recommendation"]) < text.index("<table>")


def test_the_page_says_all_that_was_found_out_in_the_order_of_its_sections(made):
    text = Outline(made).text
    headings = [
        "Accuracy against latency",
        "What it looks like",
        "Quality",
        "Calibration",
        "Gates",
        "Cost",
        "Engines",
    ]
    headings += ["How it was measured", "Where it comes from"]
    places = [text.rindex(f"\n{one}\n") for one in headings]
    assert places == sorted(places)
    for words in ("2.0 IoU points below the <best>", "what a <mirror> changes", "Depths differ more for <objects>."):
        assert words in text
    assert ", 2 threads, fp32" in text
    assert (
        "30 rounds in which the depths take turns, after a warm-up; they ended when the limit of 120 s was reached"
        in text
    )
    assert "−2.0" in text  # the paired difference in points, with its interval
    assert "−3.0 to −1.0" in text
    assert "at most 100000 (evaluate.max_parameters)" in text
    assert "within 1.0 points of the best in IoU, and within 2.0 points in AP" in text
    assert "separated by a watershed" in text


def test_objects_are_shown_where_they_are_more_than_connected_pixels(made):
    assert made.count('value="n"') == made.count('value="t"') == 1
    assert re.search(r"; 12 objects, 20 true, AP –\"", made)
    before = whole() | {"objects": {"true": "components", "predicted": "components", "remark": ""}}
    for report in (before, {key: value for key, value in whole().items() if key != "objects"}):
        text = page_of(report)
        assert "AP of objects" not in text
        assert "separated by a watershed" not in text


def test_what_is_not_to_be_trusted_stands_beside_the_recommendation():
    report = whole()
    text = page_of(report | {"machine": report["machine"] | {"spread": 0.6, "others_share": 0.5}})
    header = text[text.index('<header id="decision">') : text.index("<nav")]
    assert "The machine was busy" in header
    assert "50% of it" in header
    assert "groups of test images are too few" in header  # of two groups


def test_the_smallest_report_makes_a_page():
    text = page_of(smallest("L4"), num_images=1)
    assert Outline(text).open == []
    assert "mean of heads" not in text
    assert 'type="range"' not in text


@pytest.mark.parametrize("seed", range(6))
def test_any_key_may_be_missing_and_any_number_null(seed):
    rng, metrics = np.random.default_rng(seed), whole()
    optional = sorted(set(metrics) - set(smallest()))
    for key in rng.permutation(optional)[: (seed + 1) * len(optional) // 6]:
        del metrics[key]
    for row in metrics["depths"].values():
        for key in sorted(set(row) - {"iou_image"}):
            if rng.random() < 0.5:
                row[key] = None
    text = page_of(metrics)
    assert Outline(text).open == []
    assert "None" not in Outline(text).text


def test_each_engine_is_a_row_of_its_depth_and_a_report_of_before_shows_its_runtimes_there(made):
    table = made[made.index('aria-label="Engines') :]
    table = table[: table.index("</table>")]
    kinds = ["torch", "torch-bf16", "onnxruntime", "openvino", "openvino-bf16", "onnxruntime-int8", "openvino-int8"]
    assert re.findall(r'<th scope="row[^>]*>([\w-]+)', table) == ["L1", *kinds, "L2", *kinds]
    assert table.count("<small>auto</small>") == 2
    assert "−0.12" in table
    assert "2 of 9 images" in made
    assert "L2 by &lt;openvino&gt;: only 16 of 200 val images" in made
    assert "unetpp predict --tta all" in made
    before = {"depth": "L1", "runtime": "onnxruntime", "format": "onnx-int8", "precision": "int8", "iou_image": 0.7}
    before |= {"difference_iou": -0.1, "offered": False, "why": "it loses more", "latency_ms": 3.0}
    metrics = whole()
    del metrics["engines"], metrics["tta"]
    text = Outline(page_of(metrics | {"runtimes": [before]})).text
    assert "onnxruntime-int8" in text
    assert "fp32, on val" not in text


def test_a_page_without_pictures_has_no_viewer():
    text = depth_page.build_report(smallest(), [{"id": "a", "kind": "", "iou_L1": 0.5}], [], {}, "L1", RULE, {})
    assert Outline(text).open == []
    assert 'id="viewer"' not in text


@pytest.mark.parametrize(
    ("dtype", "channels", "side"),
    [(np.uint16, 1, 20), (np.uint8, 2, 7), (np.uint16, 5, 700), (np.uint8, 3, 288), (np.float32, 3, 20)],
)
def test_any_image_can_be_shown(dtype, channels, side):
    text = page_of(whole(), dtype=dtype, channels=channels, side=side, num_classes=3)
    assert "taken for another class" in text


def test_floats_are_shown_as_whole_numbers_of_the_same_picture_are():
    pixels = np.random.default_rng(0).integers(0, 2**16, (20, 20, 3)).astype(np.uint16)
    shown = display.display(pixels)
    for floats in (pixels / np.float32(2**20), pixels.astype(np.float32) * 1e9 - 1e13):
        assert np.abs(display.display(floats.astype(np.float32)).astype(int) - shown).max() <= 1
    assert shown.min() == 0
    assert shown.max() == 255
    assert not display.display(np.full((4, 4, 3), -7.5, np.float32)).any()


def test_two_dozen_images_make_a_page_of_at_most_three_megabytes():
    """Of noise, which compresses worst; photographs take a quarter of it."""
    names = ("L1", "L2", "L3", "L4", "mean")
    assert len(page_of(whole(names), num_images=24, side=96).encode()) < 3_000_000


def test_the_same_numbers_make_the_same_page(made):
    assert page_of(whole()) == made


def test_error_map_tells_found_extra_missed_confused_and_ignored_apart():
    mask = np.array([[0, 0, 1, 1, 1, 255, 255]], np.uint8)
    mask_hat = np.array([[0, 1, 0, 1, 2, 0, 1]], np.uint8)
    names = list(ERRORS)
    found = [names[code] for code in error_map(mask, mask_hat, mask != 255)[0]]
    assert found == ["right", "extra", "missed", "found", "confused", "ignored", "ignored"]


def legend_of(page) -> list[tuple[str, str]]:
    """Names and colours that stand for classes."""
    return [(name, colour) for colour, name in re.findall(r'background: (rgb[^"]*)"></span>([^<]*)', page)]


@pytest.mark.parametrize("num_classes", [1, 11, 30])
@pytest.mark.parametrize(("key", "first"), [("multilabel", 1), ("background", 0)])
def test_each_class_is_named_beside_its_colour(num_classes, key, first):
    metrics = named(whole(), num_classes) | {key: key == "multilabel"}
    shown = legend_of(page_of(metrics))
    assert [name for name, _ in shown] == list(metrics["classes"]["L1"])
    assert [colour for _, colour in shown] == [
        f"rgb{display.class_colour(number)}" for number in range(first, first + num_classes)
    ]


def test_a_single_class_without_a_name_needs_no_legend():
    assert legend_of(page_of(whole() | {"classes": {name: {"1": 0.8} for name in whole()["depths"]}})) == []


def test_a_mask_is_shown_in_the_colours_of_its_classes_and_of_labels_mixed():
    def colours(mask, *meaning) -> list[list[int]]:
        uri, _ = viewer.mask_layers(np.array([mask], np.uint8), *meaning)
        shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA")
        return np.array(shown)[0].tolist()

    fill, ignored = round(255 * display.FILL), list(display.ERRORS["ignored"])
    first, second = (np.array(display.class_colour(number)) for number in (1, 2))
    one, two, none = [*first, fill], [*second, fill], [0, 0, 0, 0]
    assert colours([0, 1, 2, 255], False, True) == [none, one, two, ignored]
    assert colours([0, 1, 2, 255], False, False)[0] == [*display.class_colour(0), fill]
    both = [*np.rint((first + second) / 2).astype(int), fill]
    assert colours([0, 1, 2, 3, 255], True, True) == [none, one, two, both, ignored]


def test_where_class_0_is_a_class_nothing_is_extra_or_missed():
    mask, mask_hat = np.array([[0, 0, 1, 1, 255]], np.uint8), np.array([[0, 1, 0, 1, 0]], np.uint8)
    found = [list(ERRORS)[code] for code in error_map(mask, mask_hat, mask != 255, background=False)[0]]
    assert found == ["found", "confused", "confused", "found", "ignored"]
    page = page_of(named(whole(), 3) | {"background": False}, scenes=3)
    assert "there, not predicted" not in page
    assert "taken for another class" in page


def test_an_outline_that_is_too_fine_to_draw_gives_way_to_the_filled_mask():
    fine = Outline(page_of(whole(), num_images=1, side=300))
    hrefs = [attributes.get("href") for tag, attributes in fine.tags if tag == "use"]
    assert "#y0" in hrefs
    assert 'id="o0"' not in page_of(whole(), num_images=1, side=300)


def test_what_was_missed_is_striped_as_well():
    missed = error_map(np.ones((8, 8), np.uint8), np.zeros((8, 8), np.uint8), np.ones((8, 8), bool))
    assert len(np.unique(missed)) == 1
    assert np.unique(stripe(missed), return_counts=True)[1].tolist() == [32, 32]


def test_a_layer_holds_its_mask_pixel_for_pixel():
    rng = np.random.default_rng(0)
    indices = rng.integers(0, len(ERRORS), (19, 30)).astype(np.uint8)
    colours = tuple(ERRORS.values())
    uri = html_page.indexed_uri(indices, colours)
    shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA")
    assert np.array_equal(np.array(shown), np.array(colours, np.uint8)[indices])


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (33009, "33.0 k"), (9163329, "9.16 M"), (305e6, "305 M"), (1e9, "1.00 G"), (None, "–")],
)
def test_counts_are_shortened_to_three_digits(number, text):
    assert short(number) == text


@pytest.mark.parametrize(("iou", "text"), [(-0.004, "−0.4"), (0.0123, "+1.2"), (-0.0004, "0.0"), (None, "–")])
def test_differences_are_in_points_with_their_sign(iou, text):
    assert points(iou) == text


def test_each_plot_of_dvc_has_its_template_and_the_columns_that_it_draws(repository):
    evaluate = whole()
    columns = {
        "reports/evaluate/depths.csv": {"depth", *evaluate["depths"]["L1"]},
        "reports/evaluate/reliability.csv": set(reliability_rows(evaluate)[0]),
        "reports/train/curves.csv": {"depth", "epoch", "val_iou"},
    }
    plots = yaml.safe_load((repository / "dvc.yaml").read_text())["plots"]
    drawn = {path: plot for each in plots for path, plot in each.items() if path in columns}
    assert set(drawn) == set(columns)
    for path, plot in drawn.items():
        template = (repository / f".dvc/plots/{plot['template']}.json").read_text()
        fields = set(re.findall(r'"field": "([a-z_]+)"', template)) - {"rev", "p"} | {plot["x"], plot["y"]}
        assert fields <= columns[path]
        assert json.loads(template)["data"] == {"values": "<DVC_METRIC_DATA>"}


def test_a_report_without_bins_has_a_row_for_each_depth_of_the_plot():
    assert reliability_rows(smallest()) == [{"depth": "L1", "confidence": None, "accuracy": None, "share": None}]
