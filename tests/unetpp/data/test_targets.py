"""What a network for instances learns: values of made objects, wherever they were moved before."""

import pickle

import numpy as np
import pytest
import torch

from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.augment import Augment
from unetpp.data.crops import Crops
from unetpp.data.device_augment import RawSamples, augment_batches
from unetpp.data.instances import pack
from unetpp.data.loader import AugmentedSamples, Loader
from unetpp.data.targets import CropsWithTargets, Numbered, WithTargets, make_targets, number_objects
from unetpp.data.warp import Warp
from unetpp.network.masks import IGNORE
from unetpp.network.targets import part


def targets_of(numbers: list | np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
    numbers = np.asarray(numbers, np.uint32)
    found = part(torch.from_numpy(make_targets(numbers << 8 | (numbers > 0 if mask is None else mask)))[None])
    return {name: np.round(value.squeeze().double().numpy(), 3) for name, value in found._asdict().items()}


def test_touching_objects_have_a_boundary_between_them_and_each_its_own_distance():
    found = targets_of([[0] * 9, *[[0, 7, 7, 7, 300, 300, 300, 300, 300]] * 5])
    assert found["mask"].tolist() == [[0] * 9, *[[0] + [1] * 8] * 5]
    # The last column and the last row lie at the frame, beyond which an object may go on.
    assert found["boundary"].tolist() == [[0] * 9, [0] + [1] * 8, *[[0, 1, 0, 1, 1, 0, 0, 0, 0]] * 4]
    assert found["distance"][1].tolist() == [0, *[0.5] * 3, *[0.2] * 5]
    assert found["distance"][5].tolist() == [0, 0.5, 1, 0.5, 0.2, 0.4, 0.6, 0.8, 1]
    assert (found["known"] == 1).all()


def test_a_hole_is_an_edge_and_a_corner_counts():
    numbers = np.ones((9, 9), int)
    numbers[4, 4] = 0
    found = targets_of(numbers)
    around = np.zeros((9, 9))
    around[3:6, 3:6] = 1
    around[4, 4] = 0
    assert np.array_equal(found["boundary"], around)
    assert found["distance"][0, 0] == 1  # 3 px both ways from the corner of the hole's boundary, and one more
    assert found["distance"][4, 3] == pytest.approx(1 / (1 + 3 * 2**0.5), abs=1e-3)
    assert found["distance"][4, 4] == 0


def test_what_is_unlabelled_ends_no_object_and_counts_nowhere():
    numbers, mask = np.full((5, 5), 3), np.ones((5, 5), np.uint8)
    mask[:, 4] = IGNORE
    numbers[0] = mask[0] = 0
    found = targets_of(numbers, mask)
    assert found["boundary"].tolist() == [[0] * 5, [1] * 4 + [0], *[[0] * 5] * 3]
    assert found["distance"].tolist() == [[0] * 5, *[[one] * 4 + [0] for one in (0.25, 0.5, 0.75, 1)]]
    assert found["known"].tolist() == [[1] * 5, *[[1] * 4 + [0]] * 4]
    assert found["mask"][:, 4].tolist() == [0] + [IGNORE] * 4
    # Nor does foreground that has no number; an object without an edge is all middle.
    assert targets_of([[0, 2]], np.array([[1, 1]], np.uint8))["known"].tolist() == [0, 1]
    # Not even if there is another object beyond unlabelled pixels, whose edge would be the nearest one.
    apart = targets_of([[1, 1, 1, 0, 2, 2, 0]], np.array([[1, 1, 1, IGNORE, 1, 1, 0]], np.uint8))
    assert apart["distance"].tolist() == [1, 1, 1, 0, 1, 0.5, 0]
    whole = targets_of(np.full((3, 3), 9))
    assert (whole["boundary"].max(), whole["distance"].min()) == (0, 1)


def test_without_numbers_connected_pixels_of_a_class_are_an_object():
    mask = np.array([[1, 1, 2, 0, 1], [0, 0, 2, 0, IGNORE], [1, 0, 0, 1, 1]], np.uint8)
    numbers = number_objects(mask)
    assert len(np.unique(numbers)) - 1 == 5
    assert (numbers > 0).tolist() == ((mask > 0) & (mask != IGNORE)).tolist()
    assert numbers[0, 0] == numbers[0, 1] != numbers[0, 2] == numbers[1, 2]
    joined = make_targets(numbers.astype(np.uint32) << 8 | mask)
    assert np.array_equal(make_targets(mask), joined)


@pytest.fixture
def split(tmp_path) -> Split:
    """Samples with discs that touch, one of them without numbers."""
    rng = np.random.default_rng(0)
    with SplitWriter(tmp_path / "train.arrow", instances=True) as writer:
        for index in range(6):
            numbers = np.zeros((40, 52), np.uint16)
            y, x = np.mgrid[:40, :52]
            for number, (top, left) in enumerate(rng.integers(4, 40, (12, 2)), start=1):
                numbers[(y - top) ** 2 + (x - left) ** 2 < 36] = number
            image = rng.integers(0, 256, (40, 52, 3)).astype(np.uint8)
            writer.add(str(index), "", image, (numbers > 0).astype(np.uint8), pack(numbers) if index else b"")
    return Split(tmp_path / "train.arrow")


@pytest.mark.parametrize("crop_px", [24, 48])  # the larger one is padded
@pytest.mark.parametrize("rotate", [0, 45])
def test_numbers_move_as_the_mask_does_on_the_processor_and_on_the_device(split, crop_px, rotate):
    crops = Warp(Crops(crop_px, foreground=0.5), rotate, 1.5 if rotate else 1)
    limits = {"flips": "all", "quarter_turns": True, "brightness": 0.0, "hue": 0, "channels": 3}
    order, numbered = range(len(split)), Numbered(split)
    for epoch in range(3):
        plain = AugmentedSamples(split, Augment(crops, **limits), seed=3)
        image, mask = next(Loader(plain).batches([order], epoch))
        with_targets = CropsWithTargets(crops)
        samples = pickle.loads(pickle.dumps(AugmentedSamples(numbered, Augment(with_targets, **limits), seed=3)))
        same, truth = next(Loader(samples).batches([order], epoch))
        assert torch.equal(same, image)
        assert torch.equal(part(truth).mask, mask)
        raw = Loader(RawSamples(numbered, with_targets, 3, **limits)).batches([order], epoch)
        assert torch.equal(next(augment_batches(raw, torch.device("cpu")))[1], truth)
        # Made after the flips, they are the same: none of them is drawn by direction.
        moved = AugmentedSamples(numbered, Augment(crops, **limits), seed=3)
        for index in order:
            assert np.array_equal(make_targets(moved.make(index, epoch)[1]), truth[index].numpy())


@pytest.mark.parametrize("background", [0, 2**33])
def test_numbers_of_any_size_are_told_apart(tmp_path, background):
    numbers = np.array([[background, 2**32 + 1, 2**40, 1, 2**32 + 1]])
    mask = (numbers > 0).astype(np.uint8)
    with SplitWriter(tmp_path / "a.arrow", instances=True) as writer:
        writer.add("a", "", np.zeros((1, 5, 3), np.uint8), mask, pack(numbers))
    _, numbered = Numbered(Split(tmp_path / "a.arrow"))[0]
    found = (numbered >> 8)[0].tolist()
    assert (found[0] == 0) == (background == 0)
    assert len(set(found)) == 4
    assert found[1] == found[4]
    assert np.array_equal(numbered & 255, mask)


def test_whole_images_have_targets_too(split):
    images = WithTargets(split)
    assert (len(images), images.id(2), images.shape(2)) == (6, "2", (40, 52, 3))
    image, truth = images[2]
    assert np.array_equal(image, split[2][0])
    numbers = split.instances(2)
    assert numbers is not None
    assert np.array_equal(truth, make_targets(numbers.astype(np.uint32) << 8 | split[2][1]))
