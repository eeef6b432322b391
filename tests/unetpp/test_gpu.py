"""What a GPU alone shows. All of it imports with the base packages, as `python -m benchmarks.gpu` runs it."""

import copy

import numpy as np
import pytest
import torch

from unetpp import NestedUNet
from unetpp.data.crops import Crops
from unetpp.data.device_augment import RawSamples, augment_batches
from unetpp.data.loader import Loader
from unetpp.network.batch_norm import BatchNorm
from unetpp.training.loop import choose_precision, make_loss, make_optimizer, make_scaler
from unetpp.training.pairs import Pairs
from unetpp.training.step import TrainStep

pytestmark = pytest.mark.gpu
CPU, CUDA, NUM = torch.device("cpu"), torch.device("cuda"), 8


def make_samples(dtype: type, channels: int) -> RawSamples:
    rng = np.random.default_rng(0)
    high = {np.uint8: 255, np.uint16: 4000, np.float32: 7.5}[dtype]
    images = [(rng.random((20, 20, channels)) * high / (1 + number % 3)).astype(dtype) for number in range(NUM)]
    masks = [rng.integers(0, 2, (20, 20), np.uint8) for _ in range(NUM)]
    split = Pairs((images, masks), NestedUNet((4, 4), in_channels=channels), "train")
    limits = {"flips": "all", "quarter_turns": True, "brightness": 0.3, "hue": 20, "channels": channels}
    return RawSamples(split, Crops(16), 3, **limits)


def make_step(device: torch.device, dtype: torch.dtype = torch.float32) -> TrainStep:
    torch.manual_seed(0)
    network = NestedUNet((8, 8, 16)).train().to(device)
    optimizer = make_optimizer(network, "adamw", 1e-3, 0.9, 0.01)
    loss = make_loss("ce_dice", "mean", network.depths)
    return TrainStep(network, optimizer, loss, device, dtype, scaler=make_scaler(device, dtype), clip_norm=1.0)


def make_batch(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return image.to(device), (image.mean(dim=1) > 0).to(device, torch.uint8)


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 1), (np.float32, 3)])
def test_a_gpu_augments_as_the_processor_does(dtype, channels):
    loader = Loader(make_samples(dtype, channels), pin_memory=True)
    on_gpu = next(augment_batches(loader.batches([range(NUM)], 1), CUDA))
    expected = next(augment_batches(loader.batches([range(NUM)], 1), CPU))
    torch.testing.assert_close(on_gpu[0].cpu(), expected[0], rtol=1e-3, atol=2e-3)
    assert torch.equal(on_gpu[1].cpu(), expected[1])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_for_a_gpu_are_pinned(num_workers):
    loader = Loader(make_samples(np.uint8, 3), num_workers, pin_memory=True)
    try:
        assert all(one.is_pinned() for one in next(loader.batches([range(NUM)], 0)))
    finally:
        loader.close()


def test_a_step_on_a_gpu_is_that_of_the_processor():
    losses = {}
    for device in (CPU, CUDA):
        step, (image, mask) = make_step(device), make_batch(device)
        losses[device] = torch.stack([step(image, mask, len(mask), 1e-3, n, n)[0].cpu() for n in range(3)])
    torch.testing.assert_close(losses[CUDA], losses[CPU], rtol=1e-2, atol=1e-2)  # convolutions may round as TF32 does


def test_a_step_waits_for_no_gpu():
    dtype = choose_precision("auto", CUDA)
    if dtype == torch.float16:
        dtype = torch.float32  # its scaler looks at each step
    step, (image, mask) = make_step(CUDA, dtype), make_batch(CUDA)
    step(image, mask, len(mask), 1e-3, 0, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(image, mask, len(mask), 1e-3, 1, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batch_norm_on_a_gpu_knows_what_it_knows_on_the_processor():
    here = BatchNorm(3)
    there = copy.deepcopy(here).to(CUDA)
    for number in range(3):
        image = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        torch.testing.assert_close(there(image.to(CUDA)).cpu(), here(image), rtol=1e-3, atol=1e-4)
    for one, other in zip(there.buffers(), here.buffers(), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4)
