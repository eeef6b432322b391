"""Prepared splits: what is written is what is read."""

import pickle

import numpy as np
import pytest

from pipelines.files import sha256
from unetpp import data
from unetpp.data import Split, SplitWriter, read_manifest
from unetpp.errors import UserError


def make_rows(num=7):
    rng = np.random.default_rng(0)
    for number in range(num):
        height, width, channels = 5 + number, 9, (1, 3)[number % 2]
        dtype = (np.uint8, np.uint16, np.float32)[number // 2 % 3]
        high = 2**8 if dtype == np.uint8 else 2**16
        image = rng.integers(0, high, (height, width, channels)).astype(dtype)
        yield f"id/{number}", ("a", "b")[number % 2], image, rng.integers(0, 3, (height, width), np.uint8)


def write(path, rows):
    with SplitWriter(path) as writer:
        for row in rows:
            writer.add(*row)
    return path


@pytest.mark.parametrize("batch_bytes", [1, 300, 2**20])
def test_a_split_holds_what_was_written_whatever_the_batches(tmp_path, monkeypatch, batch_bytes):
    monkeypatch.setattr(data, "BATCH_BYTES", batch_bytes)
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
        low, high = (image.min(), image.max()) if image.dtype == np.float32 else (0, np.iinfo(image.dtype).max)
        scaled = (image.reshape(-1, image.shape[2]).astype(np.float64) - low) / (high - low)
        for found, expected in zip(split.moments(index), (scaled.mean(axis=0), scaled.std(axis=0)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.array_equal(split[-1][0], rows[-1][2])
    with pytest.raises(IndexError):
        split[len(rows)]


def test_samples_are_read_only_views(tmp_path):
    image, mask = Split(write(tmp_path / "a.arrow", make_rows()))[0]
    assert not image.flags.writeable
    assert not mask.flags.writeable
    assert not image.flags.owndata


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
        with pytest.raises(UserError, match=r"train\.arrow: found no whole Arrow file"):
            Split(path)


def test_rows_of_the_wrong_type_or_shape_are_refused(tmp_path):
    image, mask = np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4), np.uint8)
    with SplitWriter(tmp_path / "a.arrow") as writer:
        for bad in ((image.astype(np.float64), mask), (image, mask[:3]), (image, mask.astype(np.int64))):
            with pytest.raises(ValueError, match="cell: expected"):
                writer.add("cell", "a", *bad)


def test_a_missing_or_broken_manifest_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"size": 96')
    with pytest.raises(UserError, match=r"manifest\.json: not JSON"):
        read_manifest(tmp_path)
