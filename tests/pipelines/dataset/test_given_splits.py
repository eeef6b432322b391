"""Splits that a set brings along, and sequences of frames."""

import json

import numpy as np
import pytest
from PIL import Image

from pipelines.core.params import load_params
from pipelines.core.tables import read_rows
from pipelines.dataset.given_splits import with_splits
from pipelines.dataset.groups import find_neighbours, find_sequences, name_groups
from pipelines.dataset.layouts import Sample
from pipelines.dataset.near_duplicates import look_at
from pipelines.dataset.splits import place
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from tests.conftest import REPOSITORY
from tests.pipelines.storage.sources import located
from unetpp.errors import UserError

PARAMS = load_params(REPOSITORY / "params.yaml").prepare.model_copy(update={"size": None, "num_workers": 1})


def samples(root, *ids, splits=()):
    return [
        Sample(id, root / f"JPEGImages/{id}.jpg", (), split=split)
        for id, split in zip(ids, splits or [None] * len(ids), strict=True)
    ]


def splits(found):
    return {sample.id: sample.split for sample in found}


@pytest.mark.parametrize("line", ["{}", "{}.jpg", "/VOC/JPEGImages/{}.jpg /VOC/SegmentationClass/{}.png", "./{}.PNG"])
def test_lists_name_images_with_suffix_or_without_and_with_folders_or_without(tmp_path, line, capsys):
    folder = tmp_path / "ImageSets/Segmentation"
    folder.mkdir(parents=True)
    (tmp_path / "ImageSets/Main").mkdir()
    for name, ids in {"train": ("a 1", "b"), "val": ("c", "gone"), "trainval": ("a 1", "b", "c")}.items():
        lines = [line.format(id, id) for id in ids if line == "{}" or " " not in id or "VOC" not in line]
        (folder / f"{name}.txt").write_text("\n".join(lines))
        (tmp_path / f"ImageSets/Main/{name}.txt").write_text("\n".join(lines))
    found = splits(with_splits(samples(tmp_path, "a 1", "b", "c", "d"), tmp_path, "auto"))
    expected = {"b": "train", "c": "test"} | ({} if "VOC" in line else {"a 1": "train"})
    assert found == expected  # val alone is our test
    said = capsys.readouterr().out
    assert "its val is our test, and our val is drawn from its train by hash" in said
    assert "images are left out, as ImageSets" in said
    assert "1 names match no image" in said


def test_folders_are_taken_as_they_are_and_hash_leaves_them_alone(tmp_path, capsys):
    tmp_path.joinpath("train.txt").write_text("train/b\n")
    three = samples(tmp_path, "train/a", "val/a", "test/a", splits=("train", "val", "test"))
    assert splits(with_splits(three, tmp_path, "auto")) == {"train/a": "train", "val/a": "val", "test/a": "test"}
    assert "the dataset's own split, by folders: 1 train, 1 val, 1 test" in capsys.readouterr().out
    assert set(splits(with_splits(three, tmp_path, "hash")).values()) == {None}


def test_a_list_of_val_alone_and_a_table_of_other_columns_divide_too(tmp_path):
    four = samples(tmp_path, "a", "b", "c", "d")
    (tmp_path / "metadata.csv").write_text("image,phase\na,arterial\nb,venous\n")  # of something else
    (tmp_path / "valid.txt").write_text("b.png\n")
    assert splits(with_splits(four, tmp_path, "auto")) == {"a": "train", "b": "test", "c": "train", "d": "train"}
    (tmp_path / "valid.txt").unlink()
    (tmp_path / "metadata.csv").write_text("image,mask,set\na.jpg,a.png,train\nb.jpg,b.png,Test\nc.jpg,c.png,valid\n")
    assert splits(with_splits(four, tmp_path, "auto")) == {"a": "train", "b": "test", "c": "val"}


def test_a_table_must_name_every_image_once(tmp_path):
    path, both = tmp_path / "s.csv", samples(tmp_path, "x/a", "x/b", "x/c")
    path.write_text("split,filename\ntrain,a.png\nvalid,b\ntest,x/c\n")
    assert splits(with_splits(both, tmp_path, str(path))) == {"x/a": "train", "x/b": "val", "x/c": "test"}
    for content, message in (
        ("id,split\na,train\nb,test\n", r"found no row for 1 of 3 ids: x/c"),
        ("id,split\na,train\na,test\n", r"line 3: found 'x/a' in test, and earlier in train"),
        ("id,split\na,fold1\n", r"line 2: found the split 'fold1'"),
        ("id,group\na,1\n", r"found the columns id, group; expected"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            with_splits(both, tmp_path, str(path))
    with pytest.raises(UserError, match=r"no such file; .*correct prepare\.split"):
        with_splits(both, tmp_path, "none.csv")


def test_val_is_drawn_from_the_sets_train_alone_and_folds_divide_what_is_not_test():
    members = [[f"g{n}"] for n in range(400)]
    given = ["test" if n % 4 == 0 else "train" for n in range(400)]
    found = place(members, PARAMS, given=given)
    assert [one.split == "test" for one in found] == [split == "test" for split in given]
    assert 15 < sum(one.split == "val" for one in found) < 65  # an eighth of 300
    few = [one.split for one in place([[str(n)] for n in range(4)], PARAMS, given=["train"] * 3 + ["test"])]
    assert sorted(few) == ["test", "train", "train", "val"]  # a small set has a val, too
    folded = place(
        members, PARAMS.model_copy(update={"folds": 3}), given=["val" if n == 1 else s for n, s in enumerate(given)]
    )
    assert {one.fold for one, split in zip(folded, given, strict=True) if split != "test"} == {0, 1, 2}


def stack(num, seed=0, smooth=3):
    """(num, 64, 64, 3) uint8: slices that change slowly."""
    noise = np.random.default_rng(seed).normal(size=(num + 2 * smooth, 64, 64))
    mean = np.stack([noise[n : n + 2 * smooth].mean(axis=0) for n in range(num)])
    return np.repeat(((mean * 60 + 128).clip(0, 255)).astype(np.uint8)[..., None], 3, axis=3)


def looks(pictures):
    return np.stack([look_at(picture).small for picture in pictures])


def test_slices_of_a_stack_are_a_sequence_and_numbered_photographs_are_none():
    ids = {n: f"train/slice{n:02}" for n in range(30)}
    frames = find_sequences(ids, looks(stack(30)))
    assert {frame.sequence for frame in frames.values()} == {"slice*"}
    assert len(set(name_groups(frames, False).values())) == 15
    assert find_sequences(ids, looks(np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8))) == {}
    near = find_neighbours(frames, {n: "train" if n < 20 else "test" for n in ids})
    assert near == {"test": {"frames": 10, "near": 10}}


def test_blocks_have_fixed_bounds_and_reach_every_split():
    frames = find_sequences({n: f"s{n}" for n in range(40)}, looks(stack(40)))
    old, new = name_groups({n: frames[n] for n in range(35)}, False), name_groups(frames, False)
    assert all(new[n] == group for n, group in old.items())
    for salt in map(str, range(20)):
        found = {one.split for one in place([[name] for name in set(new.values())], PARAMS, salt)}
        assert found == {"train", "val", "test"}


def write(folder, splits_of, pictures):
    for number, picture in enumerate(pictures):
        split = splits_of(number)
        for name, pixels in ((split, picture), (f"{split}annot", (picture[..., 0] > 150).astype(np.uint8))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"f{number:03}.png")


def test_a_given_split_is_taken_and_its_leaks_are_told_and_not_refused(tmp_path, capsys):
    write(tmp_path / "set", lambda n: ("train", "train", "val", "test")[n % 4], stack(40))
    ingest(located("folder", tmp_path / "set"), tmp_path / "raw")
    manifest = prepare(PARAMS, tmp_path / "raw", tmp_path / "out")
    assert {split: facts.num_images for split, facts in manifest.splits.items()} == {"train": 20, "val": 10, "test": 10}
    assert {row["id"].split("/")[0] == row["split"] for row in read_rows(tmp_path / "out/split.csv")} == {True}
    said = "10 of 10 test frames lie within 30 frames of a train frame of the same sequence."
    assert manifest.leaks[-1] == said
    fingerprint = json.loads((tmp_path / "out/fingerprint.json").read_text())
    assert fingerprint["sequences"]["near"]["test"] == {"frames": 10, "near": 10}
    assert said in fingerprint["findings"]["warnings"]
    hashed = prepare(PARAMS.model_copy(update={"split": "hash"}), tmp_path / "raw", tmp_path / "hashed")
    assert hashed.leaks == []
    assert "40 images are frames of 1 sequence, such as f*" in capsys.readouterr().out
    assert hashed.num_groups == 20


@pytest.mark.shared_data
def test_frames_of_camvid_are_found_and_pets_and_nuclei_are_none(shared_data):
    found = {}
    for name, folder in {"camvid": "camvid/val", "pets": "pets/images", "nuclei": "dsb2018/images"}.items():
        paths = sorted((shared_data / folder).iterdir())[:101]
        ids = {n: path.stem if name != "nuclei" else f"nucleus_{n}" for n, path in enumerate(paths)}
        pictures = [np.asarray(Image.open(path).convert("RGB").resize((96, 96))) for path in paths]
        found[name] = len(find_sequences(ids, looks(pictures)))
    assert found == {"camvid": 101, "pets": 0, "nuclei": 0}
