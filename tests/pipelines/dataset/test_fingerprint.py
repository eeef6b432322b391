"""The fingerprint: sums of a whole are those of its splits, shares are of pixels, and what is odd is said."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.fingerprint import SPLITS, summarise
from tests.pipelines.dataset.made import make_fingerprint, make_samples
from unetpp.data.manifest import Manifest

MANIFEST = Manifest(size=96, channels=3, num_classes=4, splits={})
SUMS = ("num_images", "pixels", "foreground_px", "empty_masks", "num_objects")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_counts_of_the_whole_are_the_sums_over_the_splits(num, seed):
    fingerprint = summarise(make_samples(num, seed, num_classes=4), MANIFEST, [], [])
    splits = fingerprint["splits"]
    for key in SUMS:
        assert splits["all"][key] == sum(splits[name][key] for name in SPLITS), key
    for what, rows in fingerprint["counts"].items():
        assert sum(row["all"] for row in rows) == num, what
        for row in rows:
            assert row["all"] == sum(row[name] for name in SPLITS), row
    assert sum(row["num_images"] for row in fingerprint["intensity"]) == num
    assert sum(fingerprint["masks"]["shares"]) == num
    for name in ("stored", "prepared"):
        assert fingerprint["objects"][name]["num_objects"] == splits["all"]["num_objects"]
        assert sum(fingerprint["objects"][name]["sizes"].values()) == splits["all"]["num_objects"]
    assert sum(row["num_objects"] for row in fingerprint["objects"]["kinds"]) == splits["all"]["num_objects"]
    assert sum(row["pixels"] for row in fingerprint["classes"]) == splits["all"]["pixels"]
    assert sum(row["pixels"] for row in fingerprint["classes"][1:]) == splits["all"]["foreground_px"]


def test_the_order_of_the_samples_does_not_matter():
    samples = make_samples(80, num_classes=4)
    order = np.random.default_rng(1).permutation(80)
    shuffled = {name: column[order] for name, column in samples.items()}
    assert make_fingerprint(shuffled, num_classes=4) == make_fingerprint(samples, num_classes=4)


def test_it_is_plain_json(fingerprints):
    for fingerprint in fingerprints.values():
        assert json.loads(json.dumps(fingerprint, allow_nan=False)) == fingerprint


def test_rare_values_are_one_row_together():
    sides = tuple((64 + n, 64) for n in range(12))
    rows = make_fingerprint(make_samples(300, sides=sides))["counts"]["Size, px"]
    assert len(rows) == 9
    assert rows[-1]["value"] == "4 others"
    assert [row["all"] for row in rows[:8]] == sorted((row["all"] for row in rows[:8]), reverse=True)


def test_weighted_pixels_of_all_present_classes_are_equal(fingerprints):
    classes = fingerprints["classes"]["classes"]
    assert [row["class"] for row in classes] == [0, 1, 2, 3, 4]
    assert classes[4]["weight"] is None  # nowhere
    present = [row["weight"] * row["share"] for row in classes[:4]]
    assert present == pytest.approx([0.25] * 4, rel=1e-4)
    assert "Class 4 occurs in no mask." in fingerprints["classes"]["findings"]["warnings"]


def test_a_class_that_a_split_lacks_is_named():
    samples = make_samples(60, num_classes=4)
    inside = samples["split"] == "test"
    samples["classes"][inside] = [cell.replace("3:", "2:") for cell in samples["classes"][inside]]
    warnings = make_fingerprint(samples, num_classes=4)["findings"]["warnings"]
    assert any(line.startswith("Class 3 is missing in test (") for line in warnings)


def test_the_depths_tell_the_share_of_objects_smaller_than_their_pixel():
    samples = make_samples(50, size=None)
    objects = make_fingerprint(samples, size=None)["objects"]
    counts = {int(bin): count for bin, count in objects["prepared"]["sizes"].items()}
    for row in objects["depths"]:
        below = sum(count for bin, count in counts.items() if 2 ** (bin / 4) < 2 ** row["depth"] * 0.999)
        assert row["smaller"] == pytest.approx(below / sum(counts.values()), abs=1e-5)
    shares = [row["smaller"] for row in objects["depths"]]
    assert shares == sorted(shares)


def test_a_split_drawn_by_chance_is_balanced_and_a_chosen_one_is_not():
    samples = make_samples(400)
    lines = make_fingerprint(samples)["findings"]["warnings"]
    assert not [line for line in lines if line.startswith("Split")]
    samples["split"] = np.where(samples["kind"] == "tissue", "test", "train").astype(object)
    lines = make_fingerprint(samples)["findings"]["warnings"]
    assert [line for line in lines if line.startswith("Split test differs from the whole in its share of tissue: 1 ")]


def test_errors_of_balance_have_the_spread_that_they_claim():
    """Splits drawn at random: their errors are about standard normal."""
    samples, rng, errors = make_samples(150), np.random.default_rng(3), []
    for _ in range(150):
        samples["split"] = rng.permutation(samples["split"])
        balance = summarise(samples, MANIFEST, [], [])["balance"]
        row = next(row for row in balance if row["measure"] == "foreground share of an image")
        errors += [row["splits"][name]["errors"] for name in SPLITS]
    assert np.mean(errors) == pytest.approx(0, abs=0.15)
    assert np.std(errors) == pytest.approx(1, abs=0.15)


def test_odd_masks_and_images_are_counted_and_named():
    samples = make_samples(20, num_classes=1)
    for index, (column, value) in enumerate(
        (("foreground_px", 0), ("prepared_foreground_px", 0), ("foreground_share", 0.95), ("low", 300))
    ):
        samples[column][index] = value
    samples["high"][3] = 300
    samples["shades_px"][4] = samples["foreground_px"].sum() / 4
    fingerprint = make_fingerprint(samples)
    masks, images = fingerprint["masks"], fingerprint["images"]
    assert masks["empty"]["ids"] == ["sample_000000"]
    assert "sample_000001" in masks["lost"]["ids"]
    assert masks["nearly_full"] == {"num": 1, "ids": ["sample_000002"]}
    assert images["blank"] == {"num": 1, "ids": ["sample_000003"]}
    text = " ".join(fingerprint["findings"]["warnings"] + fingerprint["findings"]["notes"])
    for words in (
        "1 mask is foreground nearly everywhere",
        "1 image has the same value",
        "1 mask is empty (5.0%)",
        "1 mask has values",
        "on 25.0% of",
    ):
        assert words in text


def test_nothing_to_learn_is_said(fingerprints):
    fingerprint = fingerprints["no objects"]
    assert fingerprint["advice"]["depth"] is None
    assert "No mask has any foreground: there is nothing to learn." in fingerprint["findings"]["warnings"]


def test_resizing_that_leaves_little_of_what_is_looked_for_is_a_warning(fingerprints):
    text = "Resizing to 96 x 96 px makes objects "
    assert any(line.startswith(text) for line in fingerprints["many sizes"]["findings"]["warnings"])
    assert not any(line.startswith("Resizing") for line in fingerprints["large objects"]["findings"]["warnings"])


def test_sizes_of_objects_alone_suggest_no_shallow_network(fingerprints):
    """By their count, nine tenths of the objects of a road scene are specks; depth matters there all the same."""
    for name, depth in {"many sizes": 4, "one size": 4, "large objects": 4, "classes": 4, "rare and small": 3}.items():
        assert fingerprints[name]["advice"]["depth"] == depth, name


def test_objects_told_apart_in_two_ways_are_noted_unless_they_stand_alone():
    samples = make_samples(30)
    samples["objects_by"][:2] = "components"
    note = "Objects were separated in more than one way"
    assert any(line.startswith(note) for line in make_fingerprint(samples)["findings"]["notes"])
    samples["num_objects"][:2] = 1
    assert not any(line.startswith(note) for line in make_fingerprint(samples)["findings"]["notes"])


def test_near_duplicates_are_listed_the_most_alike_first_and_those_across_splits_are_a_warning():
    samples = make_samples(40)
    ids = [samples["id"][samples["split"] == name][:3] for name in ("train", "test")]
    pairs = [(*ids[0][:2], 2, 0.95), (*ids[0][1:], 4, 0.99), (ids[0][0], ids[1][0], 3, 0.93)]
    rows = [dict(zip(("id", "other", "distance", "correlation"), map(str, pair), strict=True)) for pair in pairs]
    found = make_fingerprint(samples, duplicates=rows)
    duplicates = found["duplicates"]
    assert (duplicates["num_pairs"], duplicates["num_images"], duplicates["across"]) == (3, 4, 1)
    assert [pair["correlation"] for pair in duplicates["pairs"]] == [0.99, 0.95, 0.93]
    assert "1 pair of near-duplicates is in different splits." in found["findings"]["warnings"]


def test_broken_files_are_counted_by_reason_whatever_their_names_and_numbers():
    reasons = {
        "a": "found a mask of 48x40 px for an image of 48x48 px; expected the same size",
        "b": "found a mask of 50x40 px for an image of 48x48 px; expected the same size",
        "c": "no mask masks/c.png; add it or remove the image",
        "d": "no mask masks/d.png; add it or remove the image",
        "e": "no mask masks/e.png; add it or remove the image",
        "f": "found no image but a file that begins with b'GIF89a'; expected a whole PNG",
        "g": "found no image but a file that begins with b'text'; expected a whole PNG",
    }
    rows = [{"id": id, "file": f"images/{id}.png", "reason": reason} for id, reason in reasons.items()]
    empty = {"reason": "found an empty file (0 bytes); expected a whole PNG", "fix": "fetch it again"}
    rows.append({"id": "a", "file": "masks/a.png"} | empty)
    found = make_fingerprint(make_samples(20), quarantined=rows)["quarantine"]
    assert (found["num_files"], found["num_samples"]) == (8, 7)
    assert [one["num_files"] for one in found["reasons"]] == [3, 2, 2, 1]
    assert found["reasons"][0]["files"] == ["images/c.png", "images/d.png", "images/e.png"]
    assert found["reasons"][-1]["example"] == "found an empty file (0 bytes); expected a whole PNG: fetch it again"
