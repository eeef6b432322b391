import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unetpp import UserError
from unetpp.network.losses import (
    EXTRA,
    FOCUS,
    LOSSES,
    MISSED,
    balanced_weights,
    deep_supervision_loss,
    head_weights,
    segmentation_loss,
)
from unetpp.network.masks import IGNORE
from unetpp.scores.metrics import confusion


def every(test):
    """A test of each loss for each task."""
    tasks = [(1, False), (4, False), (3, True)]
    test = pytest.mark.parametrize(("num_classes", "multilabel"), tasks, ids=["binary", "classes", "labels"])(test)
    return pytest.mark.parametrize("name", LOSSES)(test)


def random_case(num_classes: int, multilabel: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, K, 9, 7) and a mask with ignored pixels (3, 9, 7)."""
    rng = torch.Generator().manual_seed(num_classes)
    high = 2**num_classes if multilabel else max(2, num_classes)
    mask = torch.randint(0, high, (3, 9, 7), generator=rng)
    mask[torch.rand(mask.shape, generator=rng) < 0.2] = IGNORE
    return 2 * torch.randn(3, num_classes, 9, 7, generator=rng), mask


def pixels(logits: torch.Tensor, mask: torch.Tensor, multilabel: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """Of one image, its annotated pixels: probabilities (P, K) and truth (P, K), in numpy; whether one class holds."""
    num_classes = logits.shape[0]
    z = logits.movedim(0, -1)[mask != IGNORE].double().numpy()  # (P, K)
    values = mask[mask != IGNORE].numpy()
    if num_classes > 1 and not multilabel:
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True), np.eye(num_classes)[values], True
    truth = (values[:, None] >> np.arange(num_classes)) & 1
    return 1 / (1 + np.exp(-z)), truth.astype(float), False


def regions(p: np.ndarray, t: np.ndarray, exclusive: bool):
    """Soft tp, fp and fn of each foreground class."""
    p, t = (p[:, 1:], t[:, 1:]) if exclusive else (p, t)
    return (p * t).sum(0), (p * (1 - t)).sum(0), ((1 - p) * t).sum(0)


def entropies(p: np.ndarray, t: np.ndarray, exclusive: bool) -> np.ndarray:
    return -np.log((p * t).sum(1)) if exclusive else -np.log(np.where(t == 1, p, 1 - p))


def dice(p, t, exclusive):
    tp, fp, fn = regions(p, t, exclusive)
    return 1 - np.mean((2 * tp + 1) / (2 * tp + fp + fn + 1))


def jaccard_of(wrong: np.ndarray, truth: np.ndarray) -> float:
    """1 - IoU when these pixels are wrong: the set function whose Lovász extension the loss is."""
    hit, found = (truth == 1) & ~wrong, (truth == 1) ^ wrong
    union = ((truth == 1) | found).sum()
    return 1 - hit.sum() / union if union else 0.0


def lovasz_by_definition(errors: np.ndarray, truth: np.ndarray) -> float:
    """Sum over the sorted errors of what each pixel adds to the set function."""
    total, before, wrong = 0.0, 0.0, np.zeros(len(errors), bool)
    for index in np.argsort(-errors, kind="stable"):
        wrong[index] = True
        after = jaccard_of(wrong, truth)
        total += max(errors[index], 0) * (after - before)
        before = after
    return float(total)


def expected_loss(
    name: str, logits: torch.Tensor, mask: torch.Tensor, multilabel: bool, background: bool = True
) -> float:
    p, t, exclusive = pixels(logits, mask, multilabel)
    bare = exclusive and background  # the first class has no overlap
    entropy = entropies(p, t, exclusive)
    if name == "ce_dice":
        return 0.5 * entropy.mean() + dice(p, t, bare)
    if name == "focal_dice":
        return 0.5 * ((1 - np.exp(-entropy)) ** FOCUS * entropy).mean() + dice(p, t, bare)
    if name == "tversky":
        tp, fp, fn = regions(p, t, bare)
        return 1 - np.mean((tp + 1) / (tp + EXTRA * fp + MISSED * fn + 1))
    assert name == "lovasz", f"write the definition of {name} here"
    if exclusive:
        errors, present = np.abs(t - p), [c for c in range(t.shape[1]) if t[:, c].any()]
        return float(np.mean([lovasz_by_definition(errors[:, c], t[:, c]) for c in present]))
    hinge = 1 - np.log(p / (1 - p)) * (2 * t - 1)
    return float(np.mean([lovasz_by_definition(hinge[:, c], t[:, c]) for c in range(t.shape[1])]))


@every
def test_every_loss_equals_its_definition_for_every_task_and_ignores_unlabelled_pixels(name, num_classes, multilabel):
    logits, mask = random_case(num_classes, multilabel)
    found = segmentation_loss(logits, mask, None, name, multilabel)
    expected = [expected_loss(name, logits[n], mask[n], multilabel) for n in range(3)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_0_that_is_no_background_has_its_overlap_in_the_loss(name):
    logits, mask = random_case(4, False)
    found = segmentation_loss(logits, mask, None, name, background=False)
    expected = [expected_loss(name, logits[n], mask[n], False, background=False) for n in range(3)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=1e-6)


@every
def test_ignored_pixels_get_no_gradient_and_what_is_said_of_them_changes_no_bit(name, num_classes, multilabel):
    logits, mask = random_case(num_classes, multilabel)
    mask[0] = IGNORE
    unknown = (mask == IGNORE).unsqueeze(1)
    weights = None if multilabel else torch.arange(1.0, 1 + max(2, num_classes))
    found = []
    for other in (logits, torch.where(unknown, -9 * logits + 30, logits)):
        other = other.clone().requires_grad_()
        loss = segmentation_loss(other, mask, weights, name, multilabel)
        loss.sum().backward()
        found.append((loss.detach(), other.grad))
        assert torch.isfinite(loss).all()
        assert other.grad is not None
        assert not other.grad[unknown.expand_as(other)].any()
        assert other.grad[1:].any()
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@every
def test_every_loss_falls_when_it_is_followed_down(name, num_classes, multilabel):
    logits, mask = random_case(num_classes, multilabel)
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.2)
    losses = []
    for _ in range(150):
        loss = segmentation_loss(logits, mask, None, name, multilabel).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]


def test_lovasz_of_hard_wrong_pixels_is_one_minus_iou():
    """On the corners of the cube the extension is the set function itself."""
    rng = torch.Generator().manual_seed(0)
    mask, hat = (torch.randint(0, 3, (4, 8, 8), generator=rng) for _ in range(2))
    sure = 60.0 * F.one_hot(hat, 3).movedim(-1, 1).float()
    tp, fp, fn = confusion(hat, mask, 3).double().unbind(-1)  # (N, K)
    expected = (1 - tp / (tp + fp + fn)).mean(dim=1)
    torch.testing.assert_close(segmentation_loss(sure, mask, loss="lovasz").double(), expected, atol=1e-5, rtol=0)


def test_weights_of_the_heads_are_mean_sum_or_numbers_by_depth():
    assert head_weights("mean", (1, 2, 3, 4)).tolist() == [0.25] * 4
    assert head_weights("sum", (1, 2)).tolist() == [1, 1]
    assert head_weights((1, 2, 3, 4), (1, 2, 3)).tolist() == [1, 2, 3]
    assert head_weights((1, 2, 3, 4), (4,)).tolist() == [4]
    for wrong in ((1, 2), (1, 2, 0), (1, 2, -1)):
        with pytest.raises(UserError, match="for each depth 1 to 3"):
            head_weights(wrong, (1, 2, 3))


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
