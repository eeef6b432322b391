import pytest
import torch
import torch.nn.functional as F

from unetpp.losses import deep_supervision_loss, segmentation_loss


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
