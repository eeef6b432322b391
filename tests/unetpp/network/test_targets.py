"""The loss of boundary and distance."""

import numpy as np
import pytest
import torch

from unetpp import NestedUNet, UserError
from unetpp.network.losses import deep_supervision_loss, segmentation_loss
from unetpp.network.masks import FOR_INSTANCES, IGNORE
from unetpp.network.targets import BOUNDARY_WEIGHT, DISTANCE_WEIGHT, join, mask_of, part, targets_loss


def made(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, num_classes + 2, 5, 6) of a head, and what they are to be."""
    rng = np.random.default_rng(num_classes)
    mask = rng.choice(np.array([0, 1, num_classes - 1 or 1, IGNORE], np.uint8), (2, 5, 6))
    known = (mask != IGNORE) & (rng.random(mask.shape) < 0.8)
    truth = join(mask, rng.random(mask.shape) < 0.3, rng.random(mask.shape), known)
    return torch.from_numpy(rng.normal(0, 2, (2, num_classes + 2, 5, 6))).float(), torch.from_numpy(truth)


def test_what_is_joined_is_parted():
    mask = np.array([[0, 1, 6, IGNORE]], np.uint8)
    boundary, known = mask == 1, mask != IGNORE
    distance = np.array([[0, 0.25, 1, 0]])
    joined = torch.from_numpy(join(mask, boundary, distance, known))[None]
    found = [one.squeeze().tolist() for one in part(joined)]
    assert found == [mask[0].tolist(), [0, 1, 0, 0], pytest.approx([0, 0.25, 1, 0], abs=2e-5), [1, 1, 1, 0]]
    assert mask_of(torch.from_numpy(mask)).dtype == torch.uint8


@pytest.mark.parametrize("num_classes", [1, 3])
def test_the_loss_is_the_masks_and_the_entropies_of_the_known_pixels(num_classes):
    logits, truth = made(num_classes)
    found = deep_supervision_loss((logits, -logits), truth, targets=FOR_INSTANCES)
    mask, boundary, distance, known = (one.squeeze(1) for one in part(truth))
    for head, sign in enumerate((1, -1)):
        expected = segmentation_loss(sign * logits[:, :num_classes], mask).numpy()
        for image in range(2):
            at = known[image].bool()
            for channel, wanted, weight in ((-2, boundary, BOUNDARY_WEIGHT), (-1, distance, DISTANCE_WEIGHT)):
                p = (sign * logits[image, channel][at]).sigmoid().double().numpy()
                t = wanted[image][at].double().numpy()
                expected[image] += weight * -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
        np.testing.assert_allclose(found[head], expected, rtol=1e-5)


def test_pixels_that_are_not_known_and_an_image_of_them_have_no_say():
    logits, truth = made(1)
    truth[0] &= ~(1 << 9)
    logits.requires_grad_()
    loss = targets_loss(logits[:, 1:], truth)
    loss.sum().backward()
    assert logits.grad is not None
    assert loss[0] == 0
    assert not logits.grad[0].any()
    known = part(truth).known[1, 0].bool()
    assert not logits.grad[1, 1:, ~known].any()
    assert logits.grad[1, 1:, known].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_great_logits_of_low_precision_have_a_finite_loss(dtype):
    logits, truth = made(1)
    for scale in (1e4, -1e4):
        great = torch.full_like(logits, scale).to(dtype).requires_grad_()
        loss = deep_supervision_loss((great,), truth, targets=FOR_INSTANCES).sum()
        loss.backward()
        assert great.grad is not None
        assert loss.isfinite()
        assert great.grad.isfinite().all()


def test_other_lists_and_labels_are_refused():
    for targets in ((), ("boundary",), ("mask", "distance"), ("mask", "distance", "boundary")):
        with pytest.raises(UserError, match=r"targets: found \[.*; expected \['mask'\] or \['mask', 'boundary'"):
            NestedUNet((4, 6), targets=targets)
    with pytest.raises(UserError, match="labels may overlap: set targets to mask"):
        NestedUNet((4, 6), num_classes=2, multilabel=True, targets=FOR_INSTANCES)
