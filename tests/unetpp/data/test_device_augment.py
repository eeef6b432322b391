"""Augmentation on the device: the draws and the images of `augment`, in any batch."""

import numpy as np
import pytest
import torch

from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.augment import Augment
from unetpp.data.crops import Crops
from unetpp.data.device_augment import RawSamples, augment_batch, augment_batches, draw
from unetpp.data.loader import AugmentedSamples, Loader
from unetpp.data.scaling import scaled, standardise
from unetpp.data.warp import Warp

FULL = {"flips": "all", "quarter_turns": True, "brightness": 0.3, "hue": 20}
NUM = 12


@pytest.fixture(params=[(np.uint8, 3), (np.uint16, 3), (np.float32, 3), (np.uint8, 1), (np.uint16, 1)], ids=str)
def split(request, tmp_path) -> Split:
    dtype, channels = request.param
    rng = np.random.default_rng(0)
    with SplitWriter(tmp_path / "train.arrow") as writer:
        for number in range(NUM):
            high = {np.uint8: 255, np.uint16: 4000, np.float32: 7.5}[dtype] / (1 + number % 3)
            mask = rng.choice(np.array([0, 1, 2, 127, 255], np.uint8), (20, 20))  # all labels, and what is ignored
            image = (rng.random((20, 20, channels)) * high * (1 + mask[..., None] % 3) / 3).astype(dtype)
            writer.add(str(number), "kind", image, mask)
    return Split(tmp_path / "train.arrow")


def device_batch(split, indices, epoch, crops=None, **changes):
    settings = FULL | changes | {"channels": split[0][0].shape[2]}
    loader = Loader(RawSamples(split, crops or Crops(16), seed=3, **settings))
    return next(augment_batches(loader.batches([indices], epoch), torch.device("cpu")))


@pytest.mark.parametrize("crop_px", [None, 16, 27])
@pytest.mark.parametrize("rotate", [0, 45])
def test_the_device_computes_what_the_processor_does(split, crop_px, rotate):
    crops = Warp(Crops(crop_px, foreground=0.5), rotate)
    augment = Augment(crops, **FULL, channels=split[0][0].shape[2])
    for epoch in range(8):
        expected = next(Loader(AugmentedSamples(split, augment, seed=3)).batches([range(NUM)], epoch))
        image, mask = device_batch(split, range(NUM), epoch, crops)
        assert torch.equal(mask, expected[1])
        # A dim image's contrast is stretched by standardisation, and what rounding left with it.
        torch.testing.assert_close(image, expected[0], rtol=1e-3, atol=2e-3)


def test_a_sample_is_the_same_alone_and_in_any_batch(split):
    whole, whole_mask = device_batch(split, range(NUM), 5)
    for index in range(NUM):
        for batch in ([index], [index, 0, 3], [7, 2, index]):
            image, mask = device_batch(split, batch, 5)
            place = len(batch) - 1 if batch[-1] == index else batch.index(index)
            assert torch.equal(image[place], whole[index])
            assert torch.equal(mask[place], whole_mask[index])


def test_draws_differ_by_seed_epoch_and_sample():
    keys = [(seed, epoch, name) for seed in range(4) for epoch in range(10) for name in "abcde"]
    draws = [draw(key, **FULL, channels=3) for key in keys]
    assert len(set(draws)) > len(keys) * 0.75  # in a quarter nothing but one of eight symmetries is drawn
    for name in ("contrast", "hue"):
        neutral = sum(getattr(one, name) == getattr(type(one)(), name) for one in draws)
        assert 0.4 < neutral / len(draws) < 0.6
    assert {one[:3] for one in draws} == {(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)}


def test_without_steps_images_are_standardised_and_else_as_they_are(split):
    image, mask = device_batch(
        split, range(NUM), 0, Crops(None), flips="none", quarter_turns=False, brightness=0, hue=0
    )
    pixels = torch.stack([torch.from_numpy(scaled(split[n][0])).permute(2, 0, 1) for n in range(NUM)])
    torch.testing.assert_close(image, standardise(pixels))
    assert torch.equal(mask, torch.stack([torch.from_numpy(split[n][1].copy()) for n in range(NUM)]))


def test_images_that_are_not_square_are_refused_where_a_quarter_turn_is_drawn():
    image, draws = torch.zeros(1, 4, 6, 1), torch.tensor([[1.0, 0, 0, 1, 0, 0]])
    with pytest.raises(ValueError, match=r"expected square ones: set train\.crop_px"):
        augment_batch(image, image[..., 0], draws, torch.tensor([[0.0, 1]]), torch.ones(1, 2, 1))
