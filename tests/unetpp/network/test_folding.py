import pytest
import torch

from tests.unetpp.network.classic import with_lived_in_norms
from unetpp import NestedUNet, prune
from unetpp.network.folding import fold

KINDS = [
    {},
    {"skips": "short"},
    {"skips": "encoder"},
    {"skips": "plain", "deep_supervision": False},
    {"upsampling": "transposed"},
    {"upsampling": "bilinear", "dropout": 0.3},
    {"norm": "group"},
    {"norm": "instance"},
    {"num_classes": 3, "in_channels": 1},
]


def made(**kind) -> NestedUNet:
    torch.manual_seed(0)
    network = NestedUNet((4, 6, 8), **kind)
    return with_lived_in_norms(network) if network.norm == "batch" else network.eval()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_folded_network_equals_the_network_in_eval_mode(kind):
    network = made(**kind)
    image = torch.rand(2, network.in_channels, 16, 24)
    with torch.inference_mode():
        for found, expected in zip(fold(network)(image), network(image), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_folding_leaves_no_norm_and_takes_nothing_from_the_network_that_it_was_made_of():
    network = made().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold(network)
    assert folded.norm == "none"
    assert not folded.training
    assert not any("norm" in key for key in folded.state_dict())
    for value in folded.state_dict().values():
        value.zero_()
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_norms_that_look_at_each_image_stay(norm):
    folded = fold(made(norm=norm))
    assert folded.norm == norm
    weight = "nodes.0_0.norm1.weight"
    assert torch.equal(folded.get_parameter(weight), made(norm=norm).get_parameter(weight))


def test_a_channel_that_never_varied_is_folded_too():
    network = made()
    network.get_buffer("nodes.0_0.norm1.running_var").zero_()
    image = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        expected = network(image)[0]
        torch.testing.assert_close(fold(network)(image)[0], expected, atol=1e-5 * expected.abs().max(), rtol=1e-5)


def test_folding_and_pruning_may_be_done_in_either_order():
    network = made()
    one, other = prune(fold(network), 1), fold(prune(network, 1))
    assert one.config() == other.config()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
    weight = "heads.1.weight"
    assert torch.equal(fold(one).get_parameter(weight), one.get_parameter(weight))  # folded twice is folded
