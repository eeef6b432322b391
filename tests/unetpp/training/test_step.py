import copy
from contextlib import nullcontext

import pytest
import torch
from torch.overrides import TorchFunctionMode

from unetpp import NestedUNet
from unetpp.training.batch_norm import Statistics
from unetpp.training.ema import Ema
from unetpp.training.failures import FailedError
from unetpp.training.loop import make_loss, make_optimizer, make_scaler
from unetpp.training.step import LOOK_EVERY, NonFiniteError, TrainStep

CPU = torch.device("cpu")


def make_step(norm: str = "group", optimizer: str = "adamw", levels: int = 0, dropout: float = 0.0, **how) -> TrainStep:
    torch.manual_seed(0)
    network = NestedUNet((4, 6, 8), norm=norm, dropout=dropout).train()
    network.checkpoint_levels = levels
    dtype = how.pop("dtype", torch.float32)
    loss = how.pop("loss", make_loss("ce_dice", "mean", network.depths))
    return TrainStep(network, make_optimizer(network, optimizer, 1e-2, 0.9, 0.0), loss, CPU, dtype, **how)


def make_batch(num: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    image = torch.randn(num, 3, 16, 16, generator=draws)
    return image, (image.mean(dim=1) > 0).to(torch.uint8)


def weights_after(step: TrainStep, steps: int = 3, num: int = 5) -> dict[str, torch.Tensor]:
    image, mask = make_batch(num)
    for number in range(steps):
        sums = step(image, mask, num, 1e-2, number, seed=number)
        assert sums[1] in (0, num)
    return {key: value.clone() for key, value in step.network.state_dict().items()}


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_batch_in_parts_gives_the_step_of_the_whole(parts):
    """Of parts of any sizes. Batch norm knows the images of a part alone, the other norms each image."""
    whole = weights_after(make_step(optimizer="sgd"))
    cut = weights_after(make_step(optimizer="sgd", accumulate=parts))
    for key, value in whole.items():
        torch.testing.assert_close(value, cut[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("levels", [1, 3])
def test_levels_that_are_computed_twice_change_no_bit(norm, levels):
    """Nor the statistics of batch norm, which see each batch once, nor what dropout draws."""
    once = weights_after(make_step(norm, dropout=0.3))
    for key, value in weights_after(make_step(norm, dropout=0.3, levels=levels)).items():
        assert torch.equal(value, once[key]), key


def test_levels_that_are_computed_twice_hold_less_memory():
    def held(levels: int) -> int:
        network = NestedUNet((8, 8, 8)).train()
        network.checkpoint_levels = levels
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = network(torch.randn(2, 3, 32, 32))
        del kept
        return sum(seen.values())

    # Inside of a checkpoint nothing is packed but its inputs, which the graph outside holds anyway.
    assert held(3) < held(1) < held(0)


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_gradient_is_no_longer_than_its_limit(limit):
    step = make_step(optimizer="sgd", clip_norm=limit)
    image, mask = make_batch()
    step(image, mask, 5, 1e-2, 0, seed=0)
    norm = torch.nn.utils.get_total_norm([one.grad for one in step.network.parameters() if one.grad is not None])
    assert norm <= limit * 1.001
    free = make_step(optimizer="sgd")
    free(image, mask, 5, 1e-2, 0, seed=0)
    of_free = torch.nn.utils.get_total_norm([one.grad for one in free.network.parameters() if one.grad is not None])
    torch.testing.assert_close(norm, of_free.clamp(max=limit), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_image_that_is_no_number_stops_the_training_and_is_named(norm):
    step = make_step(norm)
    image, mask = make_batch()
    image[3, 0, 4, 4] = torch.nan
    with pytest.raises(NonFiniteError, match="in step 7") as caught:
        step(image, mask, 5, 1e-2, 7, seed=0)
    assert caught.value.step == 7
    assert 3 in caught.value.images
    if norm == "group":  # batch norm spreads it over the batch
        assert caught.value.images == [3]


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_step_that_is_skipped_leaves_no_trace_but_its_count(norm):
    image, mask = make_batch()
    poisoned = image.clone()
    poisoned[0] = torch.inf
    step, expected = make_step(norm, nonfinite="skip"), make_step(norm, nonfinite="skip")
    assert isinstance(step.network, NestedUNet)
    assert isinstance(expected.network, NestedUNet)
    step.ema, expected.ema = Ema(step.network, 0.9), Ema(expected.network, 0.9)
    for number, one in enumerate((image, poisoned, image)):
        sums = step(one, mask, 5, 1e-2, number, seed=number)
        assert sums[1] == (0 if one is poisoned else 5)
        if one is not poisoned:
            expected(one, mask, 5, 1e-2, number, seed=number)
    assert (step.skipped, expected.skipped) == (1, 0)
    for one, other in ((step.network, expected.network), (step.ema.network, expected.ema.network)):
        for value, same in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(value, same)


class Short:
    """A loss that runs out of memory where a part has more images than fit."""

    def __init__(self, fits: int, error: type[Exception] = RuntimeError):
        self.fits, self.error = fits, error
        self.loss = make_loss("ce_dice", "mean", (1, 2))

    def __call__(self, logits, mask):
        if len(mask) > self.fits:
            raise self.error("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return self.loss(logits, mask)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.cuda.OutOfMemoryError])
def test_batch_that_does_not_fit_is_refused_with_the_peak_and_what_fits(error):
    step = make_step(loss=Short(2, error))
    before = copy.deepcopy(step.network.state_dict())
    words = (
        r"batch of 5 image\(s\) of 16x16 px .*the peak was \d+ MiB; 2 image\(s\) at a time fit: set train.accumulate=4"
    )
    with pytest.raises(FailedError, match=words):
        weights_after(step)
    assert all(torch.equal(value, before[key]) for key, value in step.network.state_dict().items())
    with pytest.raises(FailedError, match="a single image did not fit either"):
        weights_after(make_step(loss=Short(0)))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_batch_that_does_not_fit_is_halved_until_it_does(norm):
    step = make_step(norm, dropout=0.2, loss=Short(2), on_oom="halve")
    halved = weights_after(step)
    assert step.accumulate == 4
    for key, value in weights_after(make_step(norm, dropout=0.2, accumulate=4)).items():
        assert torch.equal(value, halved[key]), key
    with pytest.raises(FailedError, match="batches cannot be smaller"):
        weights_after(make_step(loss=Short(0), on_oom="halve"))


def test_other_errors_are_no_lack_of_memory():
    def broken(_logits, _mask):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        weights_after(make_step(loss=broken, on_oom="halve"))


def test_fp16_with_a_scaled_loss_is_near_fp32_and_its_scale_is_kept():
    scaler = make_scaler(CPU, torch.float16)
    assert make_scaler(CPU, torch.bfloat16) is None
    step = make_step(optimizer="sgd", dtype=torch.float16, scaler=scaler)
    halves = weights_after(step, steps=6)
    for key, value in weights_after(make_step(optimizer="sgd"), steps=6).items():
        torch.testing.assert_close(value, halves[key], atol=0.01, rtol=0.05)
    # A scale that is too large drops steps and is lowered, and nothing that is no number enters the weights.
    assert scaler is not None
    assert step.scaler is not None
    step.scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**60})
    after = weights_after(step, steps=2)
    assert step.scaler.get_scale() < 2.0**60
    assert all(value.isfinite().all() for value in after.values())


def test_statistics_are_kept_and_put_back_bit_for_bit():
    network = NestedUNet((4, 6)).train()
    statistics = Statistics(network)
    network(torch.randn(3, 3, 16, 16))
    row, kept = statistics.flat(), statistics.keep()
    network(torch.randn(3, 3, 16, 16))
    assert not torch.equal(statistics.flat(), row)
    statistics.restore_flat(row)
    assert all(torch.equal(one, other) for one, other in zip(statistics.keep(), kept, strict=True))
    network(torch.randn(3, 3, 16, 16))
    statistics.restore(kept)
    assert torch.equal(statistics.flat(), row)
    assert Statistics(NestedUNet((4, 6), norm="group")).flat().numel() == 0


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimizer_in_one_kernel_makes_the_steps_of_the_plain_one(name):
    fused, plain = make_step(optimizer=name), make_step(optimizer=name)
    assert fused.optimizer.defaults["fused"]
    for group in plain.optimizer.param_groups:
        group["fused"], group["foreach"] = False, False
    for seed in range(3):
        for step in (fused, plain):
            draws = torch.Generator().manual_seed(seed)
            for parameter in step.network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=draws)
            step.optimizer.step()
    for one, other in zip(fused.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_brings_nothing_to_the_device_for_which_a_gpu_would_be_waited_for(monkeypatch):
    meta, brought = torch.device("meta"), []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, _types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if func in (torch.tensor, torch.as_tensor) or (func is torch.Tensor.to and args[0].device != found.device):
                brought.append(func)
            return found

    monkeypatch.setattr(TrainStep, "_autocast", lambda _: nullcontext())  # which knows no meta device
    monkeypatch.setitem(LOOK_EVERY, "meta", 8)
    network = NestedUNet((4, 6, 8), norm="group").to(meta).train()
    optimizer = make_optimizer(network, "adamw", 1e-2, 0.9, 0.0)
    loss = make_loss("ce_dice", [1, 2], network.depths)
    step = TrainStep(network, optimizer, loss, meta, torch.float32, clip_norm=1.0)
    image, mask = (one.to(meta) for one in make_batch())
    step(image, mask, len(mask), 1e-2, 0, 0)  # what is needed in every step is brought in the first
    with Watch():
        step(image, mask, len(mask), 1e-2, 1, 1)
    assert brought == []
