import itertools
import platform
from itertools import pairwise

import numpy as np
import pytest
import torch

from unetpp import NestedUNet, Segmenter
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.augment import Augment
from unetpp.data.crops import Crops
from unetpp.data.loader import AugmentedSamples, Loader
from unetpp.data.scaling import scale, standardise
from unetpp.network.losses import LOSSES, segmentation_loss
from unetpp.network.model import NORMS, SKIPS, UPSAMPLINGS
from unetpp.scores.metrics import confusion, per_image_iou
from unetpp.training.loop import (
    choose_precision,
    epoch_order,
    make_loss,
    make_optimizer,
    plain_batches,
    schedule,
    train_epoch,
    validate,
)


class Listed:
    """A split in memory."""

    def __init__(self, sizes: list[tuple[int, int]]):
        rng = np.random.default_rng(0)
        self.ids = [str(n) for n in range(len(sizes))]
        self.samples = [
            (rng.integers(0, 256, (*size, 3)).astype(np.uint8), rng.integers(0, 2, size).astype(np.uint8))
            for size in sizes
        ]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index: int):
        return self.samples[index]


def test_schedule_rises_to_its_peak_and_falls_to_nothing():
    rate = schedule(peak=0.1, warmup_steps=10, total_steps=100)
    rates = [rate(step) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 1e-3 * 0.1 + 1e-4
    # A training run that is shorter than its warm-up still falls to nothing.
    short = schedule(peak=0.1, warmup_steps=200, total_steps=100)
    assert max(map(short, range(100))) == pytest.approx(0.1)
    assert short(99) < 1e-3
    assert schedule(peak=0.1, warmup_steps=5, total_steps=1)(0) == pytest.approx(0.1)


def test_order_of_an_epoch_is_a_function_of_seed_and_epoch_alone():
    assert epoch_order(50, 1, 2) == epoch_order(50, 1, 2)
    assert epoch_order(50, 1, 2) != epoch_order(50, 1, 3) != epoch_order(50, 2, 3)
    assert sorted(epoch_order(50, 1, 2)) == list(range(50))


def test_image_of_another_size_begins_a_new_batch():
    split = Listed([(8, 8)] * 3 + [(8, 12)] + [(8, 8)])
    shapes = [tuple(image.shape) for image, _ in plain_batches(split, range(5), 2)]
    assert shapes == [(2, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 12), (1, 3, 8, 8)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("crop_px", [None, 8])
def test_training_sees_images_standardised_as_prediction_does(tmp_path, dtype, crop_px):
    """Whole images equal what `Segmenter` computes; a crop is standardised as the image that it is cut from."""
    rng = np.random.default_rng(0)
    with SplitWriter(tmp_path / "train.arrow") as writer:
        for n in range(4):
            image = rng.integers(0, 90 + 40 * n if dtype == np.uint8 else 3000, (12, 16, 3)).astype(dtype)
            writer.add(str(n), "kind", image, rng.integers(0, 2, (12, 16)).astype(np.uint8))
    split = Split(tmp_path / "train.arrow")
    augment = Augment(Crops(crop_px), flips="none", quarter_turns=False, brightness=0, hue=0, channels=3)
    images, _ = next(Loader(AugmentedSamples(split, augment, seed=0)).batches([range(4)], epoch=0))
    expected = standardise(torch.stack([scale(split[n][0]) for n in range(4)]))
    if crop_px is None:
        torch.testing.assert_close(images, expected)
        return
    assert images.shape == (4, 3, 8, 8)
    for n in range(4):  # each crop is found, whole, in its standardised image
        windows = expected[n].unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 8, 8)
        assert (windows - images[n]).abs().amax(dim=(1, 2, 3)).min() < 1e-4


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_training_learns_a_mask_that_can_be_seen(name, num_classes):
    torch.manual_seed(0)
    mask = torch.zeros(4, 16, 16, dtype=torch.uint8)
    mask[:, 4:12, 4:12] = num_classes - 1 or 1
    image = (mask > 0).unsqueeze(1).float().expand(-1, 3, -1, -1) * 0.5 + 0.2 * torch.rand(4, 3, 16, 16)
    rate = 0.1 if name == "sgd" else 0.01
    network = NestedUNet((4, 6, 8), num_classes=num_classes)
    optimizer = make_optimizer(network, name, rate, 0.9, 0.0)
    cpu = torch.device("cpu")
    loss = make_loss("ce_dice", "mean", network.depths)
    for step in range(60):
        batches = [(standardise(image), mask)]
        sums = train_epoch(network, batches, optimizer, lambda _: rate, step, cpu, torch.float32, loss)
        assert sums[1] == 4
    segmenter = Segmenter(network)
    ious = validate(segmenter, [(image, mask)], torch.float32)
    assert (ious[:-1, 1] / ious[-1, 1] > 0.9).all()


def test_validation_sums_of_a_whole_equal_those_over_shards_and_the_metrics_own():
    torch.manual_seed(0)
    split = Listed([(12, 20)] * 5)
    segmenter = Segmenter(NestedUNet((4, 6, 8))).eval()
    whole = validate(segmenter, plain_batches(split, range(5), 5), torch.float32)
    shards = sum(validate(segmenter, plain_batches(split, range(rank, 5, 2), 2), torch.float32) for rank in range(2))
    torch.testing.assert_close(whole, shards)
    image, mask = next(iter(plain_batches(split, range(5), 5)))
    with torch.inference_mode():
        logits = segmenter.logits(image)[-1][..., :12, :20]
    expected = per_image_iou(confusion((logits[:, 0] >= 0).long(), mask, 1)).sum()
    torch.testing.assert_close(whole[-2], torch.stack([segmentation_loss(logits, mask).sum().double(), expected]))


@pytest.mark.parametrize(
    ("there", "chosen"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_tile": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
    ids=str,
)
def test_bf16_is_chosen_only_where_the_processor_computes_in_it(monkeypatch, there, chosen):
    assert {"avx512_bf16", "amx_tile"} <= set(torch.cpu.get_capabilities()) or platform.machine() != "x86_64"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: there)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == chosen
    assert choose_precision("bf16", cpu) == torch.bfloat16
    assert choose_precision("fp32", cpu) == torch.float32


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("skips", SKIPS)
def test_every_parameter_and_head_learns_in_every_network_with_every_loss_and_weights(skips, norm, upsampling):
    torch.manual_seed(0)
    # A plain U-Net has one head, whatever the weights.
    network = NestedUNet((4, 6, 8), 2, 3, skips, skips != "plain", norm=norm, upsampling=upsampling)
    mask = torch.randint(0, 3, (2, 16, 16))
    logits = network(torch.randn(2, 2, 16, 16))
    names, parameters = zip(*network.named_parameters(), strict=True)
    for name, weights in itertools.product(LOSSES, ("mean", "sum", (0.1, 2.0))):
        each = make_loss(name, weights, network.depths)(logits, mask).mean()
        gradients = torch.autograd.grad(each, parameters, retain_graph=True)  # fails where one is in no way of it
        by_name = dict(zip(names, gradients, strict=True))
        assert all(gradient.isfinite().all() for gradient in gradients)
        for depth in network.depths:
            assert by_name[f"heads.{depth}.weight"].abs().sum() > 0, (name, weights, depth)
    assert network.depths == ((2,) if skips == "plain" else (1, 2))


def test_loss_of_weighted_heads_is_the_weighted_sum_of_theirs():
    logits, mask = tuple(torch.randn(3, 2, 1, 8, 8)), torch.randint(0, 2, (2, 8, 8))
    each = torch.stack([segmentation_loss(one, mask) for one in logits])
    torch.testing.assert_close(make_loss("ce_dice", "mean", (1, 2, 3))(logits, mask), each.mean(dim=0))
    torch.testing.assert_close(make_loss("ce_dice", "sum", (1, 2, 3))(logits, mask), each.sum(dim=0))
    weighted = 3 * each[0] + 2 * each[1] + each[2]
    torch.testing.assert_close(make_loss("ce_dice", (3, 2, 1), (1, 2, 3))(logits, mask), weighted)
