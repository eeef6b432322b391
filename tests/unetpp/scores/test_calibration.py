"""Laws of calibration and thresholds, against scikit-learn and masks made one threshold after the other."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from unetpp.network.masks import IGNORE, to_planes
from unetpp.scores.calibration import (
    THRESHOLDS,
    choose_threshold,
    count_bins,
    count_by_threshold,
    expected_calibration_error,
    reliability,
)
from unetpp.scores.metrics import confusion, per_image_iou


@pytest.fixture
def case():
    rng = torch.Generator().manual_seed(0)
    probs = torch.rand(4, 3, 16, 12, generator=rng)
    probs[0, 0, 0, :4] = torch.tensor([0.5, 0.0, 1.0, 0.05])  # on the edges
    mask = torch.randint(0, 8, (4, 16, 12), generator=rng)
    mask[:, :3] = IGNORE
    return probs, mask


def test_bins_equal_those_of_scikit_learn(case):
    probs, mask = case
    probs[probs < 0.2] = 0.25  # so that two bins are empty
    truth, valid = to_planes(mask, 3, True)
    bins = count_bins(probs, truth, valid)
    known = valid.expand_as(truth)
    true, prob = calibration_curve(truth[known].numpy(), probs[known].numpy(), n_bins=10)
    rows = reliability(bins)
    assert [row["confidence"] is None for row in rows] == [True] * 2 + [False] * 8
    assert [row["accuracy"] for row in rows[2:]] == pytest.approx(true)
    assert [row["confidence"] for row in rows[2:]] == pytest.approx(prob, rel=1e-5)
    share, confidence, accuracy = (
        np.array([row[key] for row in rows], float) for key in ("share", "confidence", "accuracy")
    )
    assert share.sum() == pytest.approx(1)
    gaps = (share * abs(confidence - accuracy))[share != 0].sum()
    assert expected_calibration_error(bins) == pytest.approx(gaps)


def test_probabilities_that_mean_what_they_say_have_no_error_and_boasting_has():
    rng = torch.Generator().manual_seed(1)
    probs = torch.rand(1, 1, 400, 400, generator=rng)
    truth = torch.rand(1, 1, 400, 400, generator=rng) < probs
    valid = torch.ones(1, 1, 400, 400, dtype=torch.bool)
    error = expected_calibration_error(count_bins(probs, truth, valid))
    assert error is not None
    assert error < 0.01
    assert expected_calibration_error(count_bins((probs > 0.5).float(), truth, valid)) == pytest.approx(0.25, abs=0.01)


def test_no_pixel_at_all_has_no_error():
    nothing = torch.zeros(1, 1, 2, 2)
    bins = count_bins(nothing, nothing > 0, nothing > 0)
    assert expected_calibration_error(bins) is None
    assert {row["share"] for row in reliability(bins)} == {0}


def test_one_pass_counts_what_masks_of_each_threshold_would(case):
    probs, mask = case
    counts = count_by_threshold(probs, *to_planes(mask, 3, True))
    assert counts.shape == (4, len(THRESHOLDS), 3, 3)
    for index, threshold in enumerate(THRESHOLDS):
        bits = 2 ** torch.arange(3).view(1, 3, 1, 1)
        mask_hat = ((probs >= torch.tensor(threshold)) * bits).sum(dim=1)
        assert torch.equal(counts[:, index], confusion(mask_hat, mask, 3, True)[:, 1:])


def test_the_threshold_chosen_has_the_highest_mean_iou_of_an_image(case):
    probs, mask = case
    binary = (mask != IGNORE) & (probs[:, 0] > 0.71)
    counts = count_by_threshold(probs[:, :1], *to_planes(binary.long(), 1))
    ious = [per_image_iou(confusion(probs[:, 0] >= t, binary.long(), 1)).mean().item() for t in THRESHOLDS]
    chosen = choose_threshold(counts)
    assert chosen is not None
    assert chosen == int(np.argmax(ious))
    assert THRESHOLDS[chosen] == 0.7


def test_of_thresholds_that_are_alike_the_nearest_to_a_half_is_chosen():
    sure = torch.zeros(1, 1, 4, 4)
    sure[..., :2] = 1
    counts = count_by_threshold(sure, sure > 0.5, torch.ones(1, 1, 4, 4, dtype=torch.bool))
    chosen = choose_threshold(counts)
    assert chosen is not None
    assert THRESHOLDS[chosen] == 0.5
    assert choose_threshold(counts[:0]) is None
