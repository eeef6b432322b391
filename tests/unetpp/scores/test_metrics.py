import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, precision_recall_fscore_support

from unetpp.network.masks import IGNORE
from unetpp.scores.metrics import (
    confusion,
    mean_iou,
    per_class_dice,
    per_class_iou,
    per_image_dice,
    per_image_iou,
    precision_recall,
    scores,
)


@pytest.fixture
def masks() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (5, 16, 12), generator=rng), torch.randint(0, 2, (5, 16, 12), generator=rng)


def test_binary_scores_equal_those_of_scikit_learn(masks):
    hat, true = masks
    flat = [(t.flatten().numpy(), h.flatten().numpy()) for t, h in zip(true, hat, strict=True)]
    found = scores(confusion(hat, true, 1))
    assert found["iou_image"] == pytest.approx(np.mean([jaccard_score(t, h) for t, h in flat]))
    assert found["dice_image"] == pytest.approx(np.mean([f1_score(t, h) for t, h in flat]))
    assert found["iou_pixels"] == pytest.approx(jaccard_score(true.flatten(), hat.flatten()))
    assert found["dice_pixels"] == pytest.approx(f1_score(true.flatten(), hat.flatten()))
    assert found["iou_paper"] == pytest.approx(np.mean([jaccard_score(t, h, average="macro") for t, h in flat]))
    assert found["dice_paper"] == pytest.approx(np.mean([f1_score(t, h, average="macro") for t, h in flat]))


def test_class_scores_equal_those_of_scikit_learn():
    rng = torch.Generator().manual_seed(1)
    hat, true = (torch.randint(0, 4, (3, 16, 12), generator=rng) for _ in range(2))
    found = scores(confusion(hat, true, 4))
    each = [
        jaccard_score(t.flatten().numpy(), h.flatten().numpy(), labels=[1, 2, 3], average="macro")
        for t, h in zip(true, hat, strict=True)
    ]
    assert found["iou_image"] == pytest.approx(np.mean(each))


def test_counts_of_a_whole_equal_the_sum_over_shards(masks):
    hat, true = masks
    whole = confusion(hat, true, 1)
    assert torch.equal(whole, torch.cat([confusion(hat[:2], true[:2], 1), confusion(hat[2:], true[2:], 1)]))


def test_empty_mask_rightly_predicted_scores_one_and_wrongly_zero():
    empty, full = torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4, dtype=torch.int64)
    assert per_image_iou(confusion(empty, empty, 1)).item() == 1
    assert per_image_iou(confusion(full, empty, 1)).item() == 0
    assert per_image_iou(confusion(empty, full, 1)).item() == 0


def test_classes_that_do_not_occur_do_not_count():
    true = torch.tensor([[[0, 1, 1, 0]]])
    assert per_image_iou(confusion(true, true, 5)).item() == 1


def test_label_scores_equal_those_of_scikit_learn_label_by_label():
    rng = torch.Generator().manual_seed(2)
    hat, true = (torch.randint(0, 8, (3, 16, 12), generator=rng) for _ in range(2))
    counts = confusion(hat, true, 3, multilabel=True)
    each = [
        [jaccard_score((t.flatten() >> bit & 1).numpy(), (h.flatten() >> bit & 1).numpy()) for bit in range(3)]
        for t, h in zip(true, hat, strict=True)
    ]
    assert scores(counts)["iou_image"] == pytest.approx(np.mean(each))
    assert per_class_iou(counts) == pytest.approx(np.mean(each, axis=0).tolist())
    assert counts.shape == (3, 4, 3)  # the background, and three labels


def test_miou_is_sklearn_s_over_the_pixels_of_all_images_as_papers_report_it():
    torch.manual_seed(0)
    hat, true = torch.randint(0, 4, (2, 3, 8, 8))
    true[:, :2] = IGNORE
    known = (true != IGNORE).numpy()
    expected = jaccard_score(true.numpy()[known], hat.numpy()[known], average="macro")
    with_background, without = (confusion(hat, true, 5, background=one) for one in (True, False))
    assert mean_iou(with_background) == pytest.approx(expected)  # class 4 is nowhere, and has no say
    assert mean_iou(without) == pytest.approx(expected)
    assert scores(without)["iou_pixels"] == pytest.approx(expected)  # class 0 counts as the others do
    assert scores(with_background)["iou_pixels"] != pytest.approx(expected)
    labels = confusion(hat, true, 2, multilabel=True)  # no label is no class
    assert mean_iou(labels, multilabel=True) == pytest.approx(scores(labels)["iou_pixels"])
    assert mean_iou(confusion(hat, torch.full_like(true, IGNORE), 5)) is None


@pytest.mark.parametrize(("num_classes", "multilabel"), [(1, False), (4, False), (3, True)])
def test_ignored_pixels_are_not_counted(num_classes, multilabel):
    rng = torch.Generator().manual_seed(3)
    high = 8 if multilabel else max(2, num_classes)
    hat, true = (torch.randint(0, high, (2, 16, 12), generator=rng) for _ in range(2))
    ignored = true.clone()
    ignored[:, :, 6:] = IGNORE
    found = confusion(hat, ignored, num_classes, multilabel)
    assert torch.equal(found, confusion(hat[:, :, :6], true[:, :, :6], num_classes, multilabel))
    nothing = confusion(hat, torch.full_like(true, IGNORE), num_classes, multilabel)
    assert nothing.sum() == 0
    assert per_image_iou(nothing).tolist() == [1, 1]  # nothing was asked of these images


def test_precision_and_recall_of_classes_equal_those_of_scikit_learn():
    rng = torch.Generator().manual_seed(4)
    hat, true = (torch.randint(0, 4, (3, 16, 12), generator=rng) for _ in range(2))
    precision, recall = precision_recall(confusion(hat, true, 4))
    flat = (true.flatten().numpy(), hat.flatten().numpy())
    expected = precision_recall_fscore_support(*flat, labels=[1, 2, 3])
    assert precision == pytest.approx(np.asarray(expected[0]).tolist())
    assert recall == pytest.approx(np.asarray(expected[1]).tolist())


def test_what_is_nowhere_predicted_has_no_precision_and_what_is_nowhere_has_no_recall():
    empty, full = torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4, dtype=torch.int64)
    (precision,), (recall,) = precision_recall(confusion(empty, full, 1))
    assert np.isnan(precision)
    assert recall == 0
    (precision,), (recall,) = precision_recall(confusion(full, empty, 1))
    assert precision == 0
    assert np.isnan(recall)


def test_dice_of_images_and_classes_average_to_dice_image(masks):
    hat, true = masks
    counts = confusion(hat, true, 1)
    assert per_image_dice(counts).mean().item() == pytest.approx(scores(counts)["dice_image"])
    assert per_class_dice(counts) == [pytest.approx(scores(counts)["dice_image"])]
