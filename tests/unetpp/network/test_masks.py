import numpy as np
import pytest
import torch

from unetpp.inference import tiles
from unetpp.network.masks import IGNORE, find_classes, find_values, to_mask, to_planes, to_probs


def test_mask_is_half_or_the_likeliest_class_or_every_label_of_half():
    assert to_mask(torch.tensor([[[[0.49, 0.5]]]]), 1).tolist() == [[[0, 1]]]
    assert to_mask(torch.tensor([[[[0.2]], [[0.5]], [[0.3]]]]), 3).tolist() == [[[1]]]
    assert to_mask(torch.tensor([[[[0.5]], [[0.4]], [[0.9]]]]), 3, multilabel=True).tolist() == [[[0b101]]]


@pytest.mark.parametrize(
    ("num_classes", "multilabel", "values"), [(1, False, 2), (4, False, 4), (3, True, 8), (1, True, 2)]
)
def test_planes_and_back_are_the_mask(num_classes, multilabel, values):
    mask = torch.arange(values).view(1, 1, -1)
    planes, valid = to_planes(mask, num_classes, multilabel)
    assert planes.shape == (1, num_classes, 1, values)
    assert valid.all()
    assert torch.equal(to_mask(planes.float(), num_classes, multilabel).long(), mask)


@pytest.mark.parametrize(("num_classes", "multilabel"), [(1, False), (4, False), (7, True)])
def test_ignored_pixels_are_in_no_plane_and_not_valid(num_classes, multilabel):
    planes, valid = to_planes(torch.tensor([[[IGNORE, 1]]]), num_classes, multilabel)
    assert not planes[..., 0].any()
    assert planes[..., 1].any()
    assert valid.tolist() == [[[[False, True]]]]


def test_probabilities_of_classes_add_up_to_one_and_those_of_labels_need_not():
    logits = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(to_probs(logits, 3).sum(dim=1), torch.ones(2, 4, 4))
    assert torch.equal(to_probs(logits, 3, multilabel=True), logits.sigmoid())
    assert torch.equal(to_probs(logits[:, :1], 1), logits[:, :1].sigmoid())


@pytest.mark.parametrize("num_classes", [1, 3])
def test_what_parts_instances_is_no_class_of_the_mask(num_classes):
    logits = torch.randn(2, num_classes + 2, 4, 4)
    logits[:, num_classes:] += 9  # likelier than any class
    probs = to_probs(logits, num_classes)
    torch.testing.assert_close(probs[:, :num_classes], to_probs(logits[:, :num_classes], num_classes))
    torch.testing.assert_close(probs[:, num_classes:], logits[:, num_classes:].sigmoid())
    mask = to_mask(probs, num_classes)
    assert torch.equal(mask, to_mask(probs[:, :num_classes], num_classes))
    assert np.array_equal(tiles.to_mask(probs.numpy(), num_classes), mask.numpy())


@pytest.mark.parametrize(("num_classes", "multilabel", "values"), [(1, False, 2), (5, False, 5), (7, True, 128)])
def test_classes_found_in_an_array_are_the_planes_of_the_tensor(num_classes, multilabel, values):
    mask = np.random.default_rng(0).integers(0, values, (30, 20)).astype(np.uint8)
    mask[::7] = IGNORE
    found = dict(find_classes(mask, multilabel))
    planes = to_planes(torch.from_numpy(mask)[None], num_classes, multilabel)[0][0].numpy()
    if num_classes > 1 and not multilabel:
        planes = planes[1:]  # without the background
    assert sorted(found) == list(range(1, len(planes) + 1))
    for number, plane in enumerate(planes, start=1):
        assert np.array_equal(found[number], plane)
    assert dict(find_classes(np.full((3, 3), IGNORE, np.uint8), multilabel)) == {}
    assert find_values(np.zeros((0, 4), np.uint8)).tolist() == []
