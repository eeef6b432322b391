import pytest
import torch

from tests.unetpp.network.classic import with_lived_in_norms
from tests.unetpp.network.counts import FULL, count, dense_parameters
from unetpp import NestedUNet, UserError, prune
from unetpp.network.masks import FOR_INSTANCES


@pytest.mark.parametrize(
    "details",
    [{}, {"norm": "group", "targets": FOR_INSTANCES}, {"norm": "instance", "upsampling": "transposed"}],
    ids=str,
)
@pytest.mark.parametrize("skips", ["dense", "short", "encoder"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_pruned_network_equals_its_head(skips, depth, details):
    torch.manual_seed(0)
    model = with_lived_in_norms(NestedUNet((4, 6, 8, 10, 12), skips=skips, **details))
    image = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        assert torch.equal(prune(model, depth)(image)[0], model(image)[depth - 1])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_pruned_network_has_the_closed_form_count_of_parameters(depth):
    assert count(prune(NestedUNet(FULL), depth)) == dense_parameters(FULL[: depth + 1], heads=1)


def test_pruned_network_takes_the_smaller_multiple():
    model = NestedUNet((2, 3, 4, 5, 6)).eval()
    assert prune(model, 1)(torch.zeros(1, 3, 6, 10))[0].shape == (1, 1, 6, 10)


def test_pruning_copies_the_weights():
    model = NestedUNet((2, 3, 4))
    pruned = prune(model, 1)
    weight = "nodes.0_0.conv1.weight"
    before = model.get_parameter(weight).clone()
    with torch.no_grad():
        pruned.get_parameter(weight).zero_()
    assert torch.equal(model.get_parameter(weight), before)


@pytest.mark.parametrize(
    ("skips", "deep_supervision", "why"),
    [("plain", False, "plain U-Net"), ("dense", False, "without deep supervision")],
)
def test_network_that_cannot_be_pruned_says_why(skips, deep_supervision, why):
    with pytest.raises(UserError, match=why):
        prune(NestedUNet((2, 3, 4), skips=skips, deep_supervision=deep_supervision), 1)


def test_depth_beyond_the_network_is_refused_with_those_it_has():
    with pytest.raises(UserError, match=r"depth 3.*1, 2"):
        prune(NestedUNet((2, 3, 4)), 3)


@pytest.mark.parametrize("skips", ["dense", "short", "encoder"])
def test_pruned_network_may_keep_its_shallower_heads(skips):
    torch.manual_seed(0)
    model = with_lived_in_norms(NestedUNet((4, 6, 8, 10), skips=skips))
    image = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        found = prune(model, 2, keep_heads=True)(image)
        assert len(found) == 2
        assert all(torch.equal(one, other) for one, other in zip(found, model(image), strict=False))
