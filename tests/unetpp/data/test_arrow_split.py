"""Prepared splits: what is written is what is read."""

import multiprocessing
import pickle

import numpy as np
import pytest

from unetpp.data import arrow_split
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.crops import find_spots
from unetpp.data.scaling import find_limits, scale
from unetpp.errors import UserError
from unetpp.files import sha256


def make_rows(num=7):
    rng = np.random.default_rng(0)
    for number in range(num):
        height, width, channels = 5 + number, 9, (1, 3)[number % 2]
        dtype = (np.uint8, np.uint16, np.float32)[number // 2 % 3]
        image = rng.integers(0, 255 if dtype == np.uint8 else 65535, (height, width, channels)).astype(dtype)
        yield f"id/{number}", ("a", "b")[number % 2], image, rng.integers(0, 3, (height, width), np.uint8)


def write(path, rows):
    with SplitWriter(path) as writer:
        for row in rows:
            writer.add(*row)
    return path


@pytest.mark.parametrize("batch_bytes", [1, 300, 2**20])
def test_a_split_holds_what_was_written_whatever_the_batches(tmp_path, monkeypatch, batch_bytes):
    monkeypatch.setattr(arrow_split, "BATCH_BYTES", batch_bytes)
    rows = list(make_rows())
    split = Split(write(tmp_path / "train.arrow", rows))
    assert len(split) == len(rows)
    assert split.ids == [row[0] for row in rows]
    assert split.kinds == [row[1] for row in rows]
    for index, (_, _, image, mask) in enumerate(rows):
        found_image, found_mask = split[index]
        assert found_image.dtype == image.dtype
        assert np.array_equal(found_image, image)
        assert np.array_equal(found_mask, mask)
        pixels = scale(image).double().flatten(1).numpy()  # (C, H * W)
        for found, expected in zip(split.moments(index), (pixels.mean(axis=1), pixels.std(axis=1)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert split.id(index) == rows[index][0]
        assert split.limits(index) == find_limits(image)
        assert [places.tolist() for places in split.spots(index)] == [one.tolist() for one in find_spots(mask)]
    assert np.array_equal(split[-1][0], rows[-1][2])
    with pytest.raises(IndexError):
        split[len(rows)]


def test_samples_lie_in_the_mapped_file_and_are_copied_nowhere(tmp_path):
    """Arrow's own access copies a large value; of a crop it would read and copy the whole image."""
    split = Split(write(tmp_path / "a.arrow", make_rows()))
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if line.rstrip().endswith("a.arrow")]
    for index in range(len(split)):
        for array in split[index]:
            assert not array.flags.writeable
            address = array.__array_interface__["data"][0]
            assert any(int(start, 16) <= address < int(stop, 16) for start, stop in spans)


def test_a_row_is_kept_as_it_was_when_it_was_added(tmp_path):
    """Whatever becomes of the array afterwards, and however it lies in memory."""
    image, mask = np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4), np.uint8).T
    image[1], mask[2] = 7, 1
    with SplitWriter(tmp_path / "a.arrow") as writer:
        writer.add("x", "kind", image, mask)
        image[:], mask[:] = 9, 0
        writer.add("y", "kind", image[:, ::-1], mask)
    found, found_mask = Split(tmp_path / "a.arrow")[0]
    assert found[1].min() == found[1].max() == 7
    assert found.sum() == 7 * 18
    assert found_mask[2].tolist() == [1] * 6
    assert found_mask.sum() == 6


def test_a_writer_counts_each_label_by_itself_and_what_is_ignored_apart(tmp_path):
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 8, (20, 30)).astype(np.uint8)
    mask[:4] = 255
    image = np.zeros((20, 30, 3), np.uint8)
    for multilabel in (True, False):
        with SplitWriter(tmp_path / "a.arrow", multilabel) as writer:
            writer.add("x", "kind", image, mask)
            writer.add("y", "kind", image, np.full((20, 30), 255, np.uint8))
        known = mask[4:]
        labels = [int((known == 0).sum()), *(int((known >> bit & 1).sum()) for bit in range(3))]
        assert writer.class_pixels == (labels if multilabel else np.bincount(known.ravel()).tolist())
        assert (writer.known_pixels, writer.ignored_pixels) == (480, 720)
        assert np.array_equal(Split(tmp_path / "a.arrow")[0][1], mask)


def pixels_of(split, index):
    return split[index][0].tobytes(), split.id(index)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # of a fork, 3.12 on
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_split_is_the_same_in_processes_however_they_start(tmp_path, method):
    split = Split(write(tmp_path / "a.arrow", make_rows()))
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(pixels_of, (split, 5)) == pixels_of(split, 5)


def test_opening_reads_no_string_of_any_sample(tmp_path, monkeypatch):
    path = write(tmp_path / "a.arrow", make_rows())
    monkeypatch.setattr(Split, "_strings", lambda *_: pytest.fail("read all strings"))
    split = Split(path)
    assert len(split) == 7
    assert split.id(6) == "id/6"


def test_a_split_pickles_as_its_path(tmp_path):
    split = Split(write(tmp_path / "a.arrow", make_rows()))
    packed = pickle.dumps(split)
    assert len(packed) < 500
    assert np.array_equal(pickle.loads(packed)[3][0], split[3][0])


def test_the_same_rows_give_the_same_bytes(tmp_path):
    paths = [write(tmp_path / name, make_rows()) for name in ("a.arrow", "b.arrow")]
    assert sha256(paths[0]) == sha256(paths[1])


def test_an_empty_split_has_no_samples(tmp_path):
    assert len(Split(write(tmp_path / "a.arrow", []))) == 0


def test_a_missing_a_truncated_and_a_foreign_split_are_refused_by_name(tmp_path):
    path = tmp_path / "train.arrow"
    with pytest.raises(UserError, match=r"train\.arrow: no such file.*dvc repro"):
        Split(path)
    write(path, make_rows())
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no arrow"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train\.arrow: found an incomplete Arrow file"):
            Split(path)


def test_rows_of_the_wrong_type_or_shape_are_refused(tmp_path):
    image, mask = np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4), np.uint8)
    with SplitWriter(tmp_path / "a.arrow") as writer:
        for bad in ((image.astype(np.float64), mask), (image, mask[:3]), (image, mask.astype(np.int64))):
            with pytest.raises(ValueError, match="cell: expected"):
                writer.add("cell", "a", *bad)
