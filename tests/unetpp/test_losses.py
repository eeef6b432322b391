import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unetpp.losses import balanced_weights, deep_supervision_loss, segmentation_loss


def test_binary_loss_is_half_bce_plus_one_minus_dice():
    torch.manual_seed(0)
    logits, mask = torch.randn(3, 1, 8, 8), torch.randint(0, 2, (3, 8, 8))
    for n in range(3):
        p, t = logits[n, 0].sigmoid(), mask[n].float()
        dice = (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        expected = 0.5 * F.binary_cross_entropy(p, t) + 1 - dice
        torch.testing.assert_close(segmentation_loss(logits, mask)[n], expected)


def test_class_loss_is_half_cross_entropy_plus_one_minus_the_mean_dice_of_the_foreground_classes():
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    for n in range(2):
        p = logits[n].softmax(0)
        dice = [(2 * p[c][mask[n] == c].sum() + 1) / (p[c].sum() + (mask[n] == c).sum() + 1) for c in (1, 2)]
        expected = 0.5 * F.cross_entropy(logits[n : n + 1], mask[n : n + 1]) + 1 - sum(dice) / 2
        torch.testing.assert_close(segmentation_loss(logits, mask)[n], expected)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_right_and_sure_logits_cost_nearly_nothing(num_classes):
    mask = torch.randint(0, max(2, num_classes), (2, 8, 8))
    hot = F.one_hot(mask, max(2, num_classes)).movedim(-1, 1).float()
    logits = 40 * (hot[:, 1:] if num_classes == 1 else hot) - 20
    assert segmentation_loss(logits, mask).max() < 1e-3
    assert segmentation_loss(-logits, mask).min() > 1


def test_loss_of_a_batch_is_the_mean_over_its_shards():
    logits, mask = torch.randn(4, 1, 8, 8), torch.randint(0, 2, (4, 8, 8))
    shards = [segmentation_loss(logits[i : i + 2], mask[i : i + 2]).mean() for i in (0, 2)]
    torch.testing.assert_close(segmentation_loss(logits, mask).mean(), sum(shards) / 2)


def test_heads_are_stacked_one_a_row():
    logits, mask = torch.randn(4, 1, 8, 8), torch.randint(0, 2, (4, 8, 8))
    both = deep_supervision_loss((logits, -logits), mask)
    assert both.shape == (2, 4)
    assert torch.equal(both[1], segmentation_loss(-logits, mask))


def test_bf16_logits_are_summed_in_fp32():
    logits, mask = torch.randn(1, 1, 256, 256), torch.randint(0, 2, (1, 256, 256))
    low = logits.bfloat16()
    assert torch.equal(segmentation_loss(low, mask), segmentation_loss(low.float(), mask))


def entropy_alone(logits, mask, weights):
    """What the weights add to the loss, per image: Dice does not know them."""
    zero = torch.zeros(len(weights))
    return 2 * (segmentation_loss(logits, mask, weights) - segmentation_loss(logits, mask, zero))


def test_weights_of_classes_are_those_of_cross_entropy():
    torch.manual_seed(0)
    logits, mask = torch.randn(3, 4, 8, 8), torch.randint(0, 4, (3, 8, 8))
    weights = torch.tensor([0.2, 1.0, 5.0, 0.0])
    expected = F.cross_entropy(logits, mask, weight=weights, reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(entropy_alone(logits, mask, weights), expected)


def test_weights_of_one_class_are_the_positive_weight_of_binary_cross_entropy():
    torch.manual_seed(0)
    logits, mask = torch.randn(3, 1, 8, 8), torch.randint(0, 2, (3, 8, 8))
    for background, foreground in ((1.0, 7.0), (0.5, 3.0)):
        weights = torch.tensor([background, foreground])
        expected = background * F.binary_cross_entropy_with_logits(
            logits[:, 0], mask.float(), pos_weight=torch.tensor(foreground / background), reduction="none"
        ).mean(dim=(1, 2))
        torch.testing.assert_close(entropy_alone(logits, mask, weights), expected)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_equal_weights_are_none(num_classes):
    torch.manual_seed(0)
    logits, mask = torch.randn(3, num_classes, 8, 8), torch.randint(0, max(2, num_classes), (3, 8, 8))
    weights = torch.ones(max(2, num_classes))
    assert torch.equal(segmentation_loss(logits, mask, weights), segmentation_loss(logits, mask))
    both = deep_supervision_loss((logits, logits), mask, 2 * weights)
    assert torch.equal(both[1], segmentation_loss(logits, mask, 2 * weights))


def test_balanced_weights_are_sklearns_and_one_on_average():
    from sklearn.utils.class_weight import compute_class_weight

    mask = torch.tensor([0] * 90 + [1] * 7 + [2] * 3)
    pixels = torch.bincount(mask).tolist()
    weights = balanced_weights(pixels)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=mask.numpy())
    assert weights == pytest.approx(expected.tolist())
    assert sum(w * n for w, n in zip(weights, pixels, strict=True)) == pytest.approx(sum(pixels))
    assert balanced_weights([5, 0, 5]) == [1.0, 1.0, 1.0]
