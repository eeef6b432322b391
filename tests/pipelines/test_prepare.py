"""Stage prepare: a split is a function of the sample, masks lie where images do, broken files are named."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.core.params import load_params
from pipelines.core.tables import read_rows
from pipelines.dataset.kinds import find_kind
from pipelines.dataset.layouts import find_samples
from pipelines.dataset.loading import _load
from pipelines.dataset.splits import SPLITS, find_split, place, position
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import read_manifest
from unetpp.data.resized import Resized, resize_sample
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.images.decode import decode_image, decode_mask
from unetpp.images.frame import Frame

PARAMS_FILE = Path(__file__).parents[2] / "params.yaml"
ALL = load_params(PARAMS_FILE)
PARAMS = ALL.prepare.model_copy(update={"size": 32})
NUM_IMAGES = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A raw folder of synthetic images, not to be changed."""
    synthetic = ALL.ingest.synthetic.model_copy(update={"num_images": NUM_IMAGES, "size_px": 48})
    folder = tmp_path_factory.mktemp("made") / "raw"
    ingest(ALL.ingest.model_copy(update={"synthetic": synthetic}), folder)
    return folder


@pytest.fixture
def raw(made, tmp_path):
    """A copy of it to break."""
    return Path(shutil.copytree(made, tmp_path / "raw"))


def hashes(folder):
    return {path.name: sha256(path) for path in folder.iterdir()}


def test_two_runs_give_the_same_bytes_in_whatever_order_the_files_were_made(made, tmp_path):
    for name, reverse in (("a", False), ("b", True)):
        for path in sorted(made.rglob("*.*"), reverse=reverse):
            target = tmp_path / name / path.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        prepare(PARAMS, tmp_path / name, tmp_path / f"{name}_out")
    assert hashes(tmp_path / "a_out") == hashes(tmp_path / "b_out")


def test_the_manifest_tells_what_the_splits_hold(made, tmp_path):
    prepare(PARAMS, made, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    splits = {name: Split(tmp_path / f"out/{name}.arrow") for name in SPLITS}
    assert sum(len(split) for split in splits.values()) == NUM_IMAGES
    for name, split in splits.items():
        described = manifest.splits[name]
        assert described.num_images == len(split)
        assert described.sha256 == sha256(split.path)
        assert described.kinds == {kind: split.kinds.count(kind) for kind in sorted(set(split.kinds))}
        assert split.ids == sorted(split.ids)
    rows = {(row["id"], row["kind"], row["split"]) for row in read_rows(tmp_path / "out/split.csv")}
    assert rows == {
        (*pair, name) for name, split in splits.items() for pair in zip(split.ids, split.kinds, strict=True)
    }
    assert manifest.quarantined == 0
    assert read_rows(tmp_path / "out/quarantine.csv") == []
    train = [splits["train"][index] for index in range(len(splits["train"]))]
    assert manifest.foreground_share == pytest.approx(np.mean([mask > 0 for _, mask in train]))
    assert manifest.raw_sha256 == sha256(made / "manifest.json")


def test_what_a_model_is_judged_by_keeps_its_own_size(made, tmp_path):
    prepare(PARAMS, made, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    for name, small in (("test", None), ("val_full", "val")):
        split = Split(tmp_path / f"out/{name}.arrow")
        for index, id in enumerate(split.ids):
            image, mask = split[index]
            assert np.array_equal(image, decode_image(made / f"images/{id}.png", 3))
            assert np.array_equal(mask > 0, decode_mask(made / f"masks/{id}.png") > 0)
            if small:
                seen = Resized.of(split, manifest)[index]
                assert all(map(np.array_equal, seen, Split(tmp_path / f"out/{small}.arrow")[index]))
    assert manifest.val_full_sha256 == sha256(tmp_path / "out/val_full.arrow")


def test_numbers_of_objects_are_kept_at_the_size_of_each_mask(made, tmp_path):
    prepare(PARAMS, made, tmp_path / "out")
    for name in ("train", "val", "test", "val_full"):
        split = Split(tmp_path / f"out/{name}.arrow")
        for index, id in enumerate(split.ids):
            stored, (_, mask), numbers = decode_mask(made / f"masks/{id}.png"), split[index], split.instances(index)
            if name in ("test", "val_full"):
                assert stored.max() < 2 if numbers is None else np.array_equal(numbers, stored)
            elif numbers is not None:
                assert numbers.shape == mask.shape
                assert not numbers[mask == 0].any()
                assert set(np.unique(numbers)) <= set(np.unique(stored))
        assert any(split.instances(index) is not None for index in range(len(split)))


def test_a_split_is_a_function_of_the_sample_and_adding_files_moves_none(made, raw, tmp_path):
    prepare(PARAMS, made, tmp_path / "all")
    gone = sorted((raw / "images").iterdir())[::3]
    for path in gone:
        path.unlink()
        (raw / "masks" / path.name).unlink()
    prepare(PARAMS, raw, tmp_path / "some")
    before, after = (
        {row["id"]: row["split"] for row in read_rows(tmp_path / f"{n}/split.csv")} for n in ("all", "some")
    )
    assert len(after) == NUM_IMAGES - len(gone)
    assert after.items() <= before.items()


@pytest.mark.parametrize(("height", "width", "size"), [(96, 96, 32), (80, 64, 32), (40, 24, 64), (20, 90, 48)])
def test_a_resized_mask_lies_where_its_image_lies(height, width, size):
    y, x = np.mgrid[0:height, 0:width]
    mask = (((y - 0.42 * height) / (0.3 * height)) ** 2 + ((x - 0.55 * width) / (0.25 * width)) ** 2 < 1).astype(
        np.uint8
    )
    image = np.repeat(mask[:, :, None] * 255, 3, axis=2)
    small, small_mask = resize_sample(image, mask, Frame((size, size)), num_classes=1)
    assert small.shape == (size, size, 3)
    decided = (
        np.abs(small[:, :, 0] - 127.5) > 1
    )  # half a pixel of foreground is rounded in 8 bits, and may go either way
    assert np.array_equal(small_mask[decided], small[:, :, 0][decided] >= 127.5)
    assert decided.mean() > 0.9
    flipped = resize_sample(image[:, ::-1], np.ascontiguousarray(mask[:, ::-1]), Frame((size, size)), num_classes=1)[1]
    assert np.mean(flipped[:, ::-1] != small_mask) < 0.005


def test_classes_are_resized_as_shares_and_two_classes_equal_foreground():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 4, (6, 6)).astype(np.uint8)
    mask = np.kron(coarse, np.ones((9, 9), np.uint8))  # whole blocks of 9 by 9
    image = np.repeat(mask[:, :, None], 3, axis=2)
    assert np.array_equal(
        resize_sample(image, mask, Frame((18, 18)), num_classes=4)[1], np.kron(coarse, np.ones((3, 3), np.uint8))
    )
    binary = (mask > 1).astype(np.uint8)
    two, one = (resize_sample(image, binary, Frame((26, 26)), number)[1] for number in (2, 1))
    assert np.array_equal(two, one)  # 26 of 54: no share is exactly one half, where they could part


@pytest.mark.parametrize(
    ("channels", "change", "high"),
    [
        (1, lambda grey: grey.astype(np.uint16) * 16, 16 * 255),
        (3, lambda grey: grey.astype(np.float32) / 1000 - 5, -4.7),
    ],
    ids=["12 bits of 16, grey", "floats, RGB"],
)
def test_pixels_keep_their_type_and_range(raw, tmp_path, channels, change, high):
    pixels = None
    for path in list((raw / "images").iterdir()):
        pixels = change(np.asarray(Image.open(path).convert("L")))
        Image.fromarray(pixels).save(path.with_suffix(".tif"))
        path.unlink()
    manifest = prepare(PARAMS.model_copy(update={"channels": channels}), raw, tmp_path / "out")
    assert manifest.quarantined == 0
    assert manifest.splits["train"].kinds["fluorescence"] > 0
    image, _ = Split(tmp_path / "out/train.arrow")[0]
    assert pixels is not None
    assert (image.dtype, image.shape) == (pixels.dtype, (32, 32, channels))
    assert image.min() < image.max() <= high
    assert len(np.unique(image)) > 100


def test_without_a_size_images_keep_theirs(made, tmp_path):
    prepare(PARAMS.model_copy(update={"size": None}), made, tmp_path / "out")
    split = Split(tmp_path / "out/train.arrow")
    for index, id in enumerate(split.ids):
        image, mask = split[index]
        assert image.shape == (48, 48, 3)
        stored = np.asarray(Image.open(made / f"masks/{id}.png"))
        assert np.array_equal(mask, stored > 0)


def test_kinds_are_told_by_colour_and_by_the_brightness_of_the_background():
    dark = np.full((8, 8, 3), 20, np.uint8)
    assert find_kind(dark) == "fluorescence"
    assert find_kind(dark + np.array([0, 0, 50], np.uint8)) == "fluorescence"
    assert find_kind(dark + np.uint8(180)) == "bright-field"
    assert find_kind(np.full((8, 8, 3), (220, 150, 200), np.uint8)) == "tissue"


def test_images_of_floats_have_the_kind_of_the_same_picture_in_16_bits():
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 3000, (8, 8, 3)).astype(np.uint16)
    dark[0, 0], dark[0, 1] = 0, 60_000
    grey = np.repeat(rng.integers(40_000, 60_000, (8, 8, 1)), 3, axis=2).astype(np.uint16)
    grey[0, 0] = 0
    for image in (dark, grey, grey * np.array([1, 0.6, 0.9])):
        kind = find_kind(image.astype(np.uint16))
        for scaled in (image / 2**16, image * 100.0 - 1e5):
            assert find_kind(scaled.astype(np.float32)) == kind
    assert {find_kind(dark), find_kind(grey)} == {"fluorescence", "bright-field"}
    assert find_kind(np.full((4, 4, 3), 0.7, np.float32)) == "fluorescence"  # nothing tells that it is bright


# What is done to a file, and what is said of it, or of the image without it.
BREAKS = {
    "images/nuclei_00003.png": (
        lambda path: path.write_text("I am text"),
        "found no image but a file that begins with",
    ),
    "masks/nuclei_00005.png": (lambda path: path.write_bytes(path.read_bytes()[:100]), "found a broken file"),
    "masks/nuclei_00007.png": (
        lambda path: Image.fromarray(np.zeros((40, 48), np.uint8)).save(path),
        "found a mask of 48x40 px for an image of 48x48 px",
    ),
    "images/nuclei_00009.png": (
        lambda path: (path.parents[1] / "masks" / path.name).unlink(),
        "no mask masks/nuclei_00009.png",
    ),
}


def test_broken_samples_are_set_aside_with_the_file_and_the_reason(raw, tmp_path):
    for file, (damage, _) in BREAKS.items():
        damage(raw / file)
    manifest = prepare(PARAMS.model_copy(update={"max_quarantined": 0.2}), raw, tmp_path / "out")
    rows = {row["file"]: row["reason"] for row in read_rows(tmp_path / "out/quarantine.csv")}
    assert rows.keys() == BREAKS.keys()
    assert all(rows[file].startswith(reason) for file, (_, reason) in BREAKS.items()), rows
    assert manifest.quarantined == len(BREAKS)
    assert sum(split.num_images for split in manifest.splits.values()) == NUM_IMAGES - len(BREAKS)


def run_stage(folder, before="", *options):
    """The command in a folder with raw data in `raw` and the params of the project, after a line of Python."""
    (folder / "params.yaml").write_text(PARAMS_FILE.read_text().replace("size: 96 ", "size: 32 "))
    code = (
        f"import sys\nfrom pipelines import prepare\nfrom pipelines.core import command\n{before}\n"
        "sys.argv[1:] = ['--raw', 'raw', '--out', 'out', '--split', 'split.csv', '--metrics', 'data.json']\n"
        "command.run_command(prepare.main)\n"
    )
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PARAMS_FILE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_too_many_broken_samples_stop_the_stage_and_leave_the_old_output(raw, tmp_path):
    prepare(PARAMS, raw, tmp_path / "out")
    before = hashes(tmp_path / "out")
    for path in sorted((raw / "images").iterdir())[:7]:
        path.write_bytes(b"")
    done = run_stage(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: raw: 7 of 24 samples are broken (29%); expected at most")
    assert done.stderr.count("images/nuclei_0000") == 5
    assert "and 2 more" in done.stderr
    assert hashes(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "params.yaml", "raw"]


def test_raw_data_without_a_manifest_without_masks_or_too_few_for_three_splits_are_refused(raw, tmp_path):
    for path in sorted((raw / "images").iterdir())[2:]:
        path.unlink()
        (raw / "masks" / path.name).unlink()
    with pytest.raises(UserError, match=r"found \d for train, \d for val, \d for test; .*prepare\.salt"):
        prepare(PARAMS, raw, tmp_path / "out")
    shutil.rmtree(raw / "masks")
    with pytest.raises(UserError, match="raw: found no masks/ folder with files; expected images/"):
        prepare(PARAMS, raw, tmp_path / "out")
    (raw / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"raw: found no manifest\.json"):
        prepare(PARAMS, raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_kind_that_misses_a_split_is_told_with_a_salt_that_does_better(made, tmp_path, capsys):
    number = 0
    while True:
        params = PARAMS.model_copy(update={"salt": str(number)})
        manifest = prepare(params, made, tmp_path / "out")
        printed = capsys.readouterr().out
        kinds = [manifest.splits[split].kinds for split in ("val", "test")]
        if any(len(found) < 3 for found in kinds):
            break
        assert "0 in val" not in printed
        assert "0 in test" not in printed
        number += 1
    assert re.search(r"warning: 8 [a-z-]+ images, with those expected .* 0 in (val \(0\.8\)|test \(1\.6\))", printed)
    salt = re.search(rf"prepare\.salt=({number}-\d+) divides the kinds better", printed)
    assert salt
    kinds = prepare(params.model_copy(update={"salt": salt[1]}), made, tmp_path / "out").splits
    assert all(set(kinds[split].kinds) == {"bright-field", "fluorescence", "tissue"} for split in SPLITS)
    assert "warning" not in capsys.readouterr().out


def places(folder):
    return {row["id"]: row for row in read_rows(folder / "split.csv")}


@pytest.mark.parametrize("num_workers", [pytest.param(2, marks=pytest.mark.nightly), 64])
def test_the_result_is_the_same_bytes_on_any_number_of_processes(raw, tmp_path, monkeypatch, num_workers):
    (raw / "images/nuclei_00005.png").write_bytes(b"broken")
    monkeypatch.setattr("pipelines.dataset.loading.num_cores", lambda: 6)
    for name, number in (("one", 1), ("more", num_workers)):
        prepare(PARAMS.model_copy(update={"num_workers": number}), raw, tmp_path / name)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "more")
    assert sorted(hashes(tmp_path / "one")) == [
        *(".unetpp", "duplicates.csv", "fingerprint.json", "manifest.json", "quarantine.csv", "samples.csv"),
        "split.csv",
        *("test.arrow", "train.arrow", "val.arrow", "val_full.arrow"),
    ]


def load_or_die(params, sample):
    """In place of `_load`, in its processes: files that kill what reads them."""
    for path in (sample.image, *sample.masks):
        content = path.read_bytes()
        marker = path.with_suffix(".killed")
        if content.startswith(b"KILL") or (content.endswith(b"ONCE") and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return _load(params, sample)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_a_file_that_kills_its_process_is_set_aside_by_name_and_the_rest_goes_on(
    raw, tmp_path, monkeypatch, num_workers
):
    monkeypatch.setattr("pipelines.dataset.loading._load", load_or_die)
    hostile = ["images/nuclei_00003.png", "masks/nuclei_00011.png"]
    for name in hostile:
        (raw / name).write_bytes(b"KILL")
    params = PARAMS.model_copy(update={"num_workers": num_workers})
    manifest = prepare(params, raw, tmp_path / "out")
    rows = read_rows(tmp_path / "out/quarantine.csv")
    assert [row["file"] for row in rows] == hostile
    for row in rows:
        assert row["reason"].startswith("found a file that cannot be decoded (its process was killed by SIGKILL)")
    assert sum(split.num_images for split in manifest.splits.values()) == NUM_IMAGES - 2


@pytest.mark.slow
def test_one_mask_of_many_that_kills_its_process_is_named(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for n in range(40):
        for folder, number in (("images", 1), ("masks", 3)):
            (tmp_path / f"raw/s{n}/{folder}").mkdir(parents=True)
            for m in range(number):
                cv2.imwrite(str(tmp_path / f"raw/s{n}/{folder}/{m}.png"), rng.integers(0, 255, (32, 32), np.uint8))
    (tmp_path / "raw/manifest.json").write_text("{}")
    (tmp_path / "raw/s7/masks/1.png").write_bytes(b"KILL")
    monkeypatch.setattr("pipelines.dataset.loading._load", load_or_die)
    prepare(PARAMS, tmp_path / "raw", tmp_path / "out")
    (row,) = read_rows(tmp_path / "out/quarantine.csv")
    assert (row["id"], row["file"]) == ("s7", "s7/masks/1.png")


def test_a_process_that_is_killed_once_costs_no_image(raw, tmp_path, monkeypatch):
    """Memory may run out by what another process decodes at the same time; alone, the file gets a second chance."""
    prepare(PARAMS, raw, tmp_path / "before")
    with (raw / "images/nuclei_00003.png").open("ab") as file:
        file.write(b"ONCE")  # decoders pass over what follows the end of a PNG
    monkeypatch.setattr("pipelines.dataset.loading._load", load_or_die)
    prepare(PARAMS, raw, tmp_path / "out")
    assert (raw / "images/nuclei_00003.killed").exists()
    assert hashes(tmp_path / "out") == hashes(tmp_path / "before")


def copy_as(raw, old, new, change=lambda image: image):
    """The sample `old` under another name, its image and mask changed alike."""
    for folder in ("images", "masks"):
        pixels = cv2.imread(str(raw / folder / f"{old}.png"), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(raw / folder / f"{new}.png"), np.ascontiguousarray(change(pixels)))


def test_copies_under_other_names_join_one_group_and_move_toward_test_alone(made, raw, tmp_path):
    prepare(PARAMS, made, tmp_path / "before")
    before = places(tmp_path / "before")
    for id in before:
        copy_as(raw, id, f"copy of {id}", lambda image: image[:, ::-1])
    manifest = prepare(PARAMS, raw, tmp_path / "after")
    after = places(tmp_path / "after")
    assert manifest.num_groups == NUM_IMAGES
    assert [(row["id"], row["other"]) for row in read_rows(tmp_path / "after/duplicates.csv")] == [
        (f"copy of {id}", id) for id in sorted(before)
    ]
    for id, row in before.items():
        assert after[f"copy of {id}"] == after[id] | {"id": f"copy of {id}"}
        assert SPLITS.index(after[id]["split"]) >= SPLITS.index(row["split"])
        assert after[id]["group"] == max((id, f"copy of {id}"), key=lambda name: position(PARAMS.salt, name))
    moved = [id for id in before if after[id]["split"] != before[id]["split"]]
    assert moved
    assert len(moved) < NUM_IMAGES / 2


def test_with_near_duplicates_off_only_the_same_pixels_in_two_splits_stop_the_stage(made, raw, tmp_path):
    params = PARAMS.model_copy(update={"near_duplicates": None})
    prepare(params, made, tmp_path / "before")
    assert read_rows(tmp_path / "before/duplicates.csv") == []
    for id in places(tmp_path / "before"):
        copy_as(raw, id, f"copy of {id}")
    with pytest.raises(UserError, match=r"(?s)found \d+ groups or pairs .* are the same pixels") as caught:
        prepare(params, raw, tmp_path / "out")
    assert "copy of nuclei_" in str(caught.value)
    assert not (tmp_path / "out").exists()


def by_number(members, params, **_):
    """A wrong rule, in place of `place`: as if every image were a group of its own."""
    return place([[str(number)] for number in range(len(members))], params)


def test_a_wrong_rule_that_divides_a_group_is_caught_by_the_gate(made, tmp_path, monkeypatch):
    groups = PARAMS.groups.model_copy(update={"pattern": r"^(nuclei)_"})
    monkeypatch.setattr("pipelines.prepare.place", by_number)
    message = r"the group 'nuclei' of 24 images is in train and val and test: nuclei_000\d\d in train, "
    with pytest.raises(UserError, match=message):
        prepare(PARAMS.model_copy(update={"groups": groups}), made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("blind", [False, True])
def test_a_wrong_rule_that_divides_near_duplicates_is_caught_by_the_gate(raw, tmp_path, monkeypatch, blind):
    """Also where the search for near-duplicates is broken with it: the same pixels are found in another way."""
    for number in range(NUM_IMAGES):
        copy_as(raw, f"nuclei_{number:05}", f"nuclei_{number:05}b", lambda image: image if blind else image[::-1])
    monkeypatch.setattr("pipelines.prepare.place", by_number)
    if blind:
        monkeypatch.setattr("pipelines.dataset.groups.find_duplicates", lambda *_: [])
    why = "the same pixels" if blind else "near-duplicates, distance 0, correlation 1.000"
    with pytest.raises(UserError, match=rf"(nuclei_\d+) in \w+ and \1b in \w+ are {why}"):
        prepare(PARAMS, raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_group_by_pattern_stays_together(made, tmp_path):
    groups = PARAMS.groups.model_copy(update={"pattern": r"^nuclei_000(\d)"})  # three of them

    def splits(salt):
        return [find_split(position(salt, group), PARAMS.shares)[0] for group in "012"]

    salt = next(salt for salt in map(str, itertools.count()) if set(splits(salt)) == set(SPLITS))
    manifest = prepare(PARAMS.model_copy(update={"groups": groups, "salt": salt}), made, tmp_path / "out")
    assert manifest.num_groups == 3
    for id, row in places(tmp_path / "out").items():
        assert row["group"] == id[10]
        assert row["split"] == splits(salt)[int(id[10])]


def test_slices_of_a_volume_stay_together_whatever_the_groups_say(raw, tmp_path, monkeypatch):
    """Neighbours are alike, which is no news."""
    for number in range(1, 12):
        copy_as(raw, "nuclei_00000", f"nuclei_{number:05}")
    samples, problems = find_samples(raw)
    samples = [replace(sample, group="v" if sample.id < "nuclei_00012" else None) for sample in samples]
    monkeypatch.setattr("pipelines.prepare.find_samples", lambda *_: (samples, problems))
    groups = PARAMS.groups
    for pattern in (None, r"(\d+)$"):
        groups = groups.model_copy(update={"pattern": pattern})
        prepare(PARAMS.model_copy(update={"groups": groups}), raw, tmp_path / "out")
        found = places(tmp_path / "out")
        volume = {(row["group"], row["split"]) for id, row in found.items() if id < "nuclei_00012"}
        assert len(volume) == 1
        assert len({row["group"] for row in found.values()}) == 13
        assert read_rows(tmp_path / "out/duplicates.csv") == []
    monkeypatch.setattr("pipelines.prepare.place", by_number)
    monkeypatch.setattr("pipelines.prepare.Looks.same_pixels", lambda _looks: [])
    with pytest.raises(UserError, match=r"nuclei_00000 in \w+ and nuclei_000\d\d in \w+ are slices of one volume"):
        prepare(PARAMS.model_copy(update={"groups": groups}), raw, tmp_path / "out")


def test_a_group_of_near_duplicates_that_holds_much_of_the_set_is_told(made, raw, tmp_path, capsys):
    prepare(PARAMS, made, tmp_path / "out")
    assert "near-duplicates join" not in capsys.readouterr().out
    for number in range(1, 12):
        copy_as(raw, "nuclei_00000", f"nuclei_{number:05}", lambda image, number=number: np.rot90(image, number))
    prepare(PARAMS, raw, tmp_path / "out")
    assert "warning: near-duplicates join 12 of 24 images in one group, nuclei_00000 among" in capsys.readouterr().out


def test_folds_divide_what_is_not_test(made, tmp_path):
    prepare(PARAMS, made, tmp_path / "plain")
    plain, val = places(tmp_path / "plain"), []
    assert {row["fold"] for row in plain.values()} == {""}
    for fold in range(3):
        prepare(PARAMS.model_copy(update={"folds": 3, "fold": fold}), made, tmp_path / str(fold))
        found = places(tmp_path / str(fold))
        for id, row in found.items():
            assert (row["split"] == "test") == (plain[id]["split"] == "test")
            assert row["fold"] == places(tmp_path / "0")[id]["fold"]
            assert (row["split"] == "val") == (row["fold"] == str(fold))
        val += Split(tmp_path / f"{fold}/val.arrow").ids
    assert sorted(val) == sorted(id for id, row in plain.items() if row["split"] != "test")


@pytest.mark.usefixtures("raw")
def test_the_command_writes_split_csv_twice_the_same_and_nothing_to_the_error_stream(tmp_path):
    done = run_stage(tmp_path, "", "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")
    assert "prepare: 24 groups; near-duplicate pairs: 0; files set aside: 0\n" in done.stdout
    assert (tmp_path / "split.csv").read_bytes() == (tmp_path / "out/split.csv").read_bytes()


def test_a_full_disk_is_named_and_the_old_output_stays(raw, tmp_path):
    """The limit of a file's size stands for the disk."""
    prepare(PARAMS, raw, tmp_path / "out")
    before = hashes(tmp_path / "out")
    done = run_stage(tmp_path, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))")
    assert done.returncode == 2, done.stderr
    assert "the disk or quota is full, or the file too large for it (File too large" in done.stderr
    assert hashes(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "params.yaml", "raw"]


@pytest.mark.shared_data
def test_real_images_have_the_kinds_that_one_sees(shared_data, tmp_path):
    """A twelfth of the set, in which the stained images are those kept as RGB."""
    names = sorted(path.name for path in (shared_data / "dsb2018/images").iterdir())[::12]
    for folder in ("images", "masks"):
        (tmp_path / "some" / folder).mkdir(parents=True)
        for name in names:
            shutil.copyfile(shared_data / "dsb2018" / folder / name, tmp_path / "some" / folder / name)
    ingest(ALL.ingest.model_copy(update={"kind": "folder", "location": str(tmp_path / "some")}), tmp_path / "raw")
    manifest = prepare(PARAMS.model_copy(update={"size": 96}), tmp_path / "raw", tmp_path / "out")
    assert manifest.quarantined == 0
    assert sum(split.num_images for split in manifest.splits.values()) == len(names)
    assert 0.08 < manifest.foreground_share < 0.22
    kinds = {row["id"]: row["kind"] for row in read_rows(tmp_path / "out/split.csv")}
    for name in names:
        with Image.open(shared_data / "dsb2018/images" / name) as image:
            assert (kinds[name.removesuffix(".png")] == "tissue") == (image.mode == "RGB")
