import copy

import pytest
import torch
from torch import nn

from unetpp import NestedUNet
from unetpp.network.model import Block
from unetpp.training.batch_norm import recompute_statistics
from unetpp.training.ema import Ema

CPU = torch.device("cpu")


def test_average_is_that_of_the_weights_of_every_step_the_latest_weighing_most():
    network = NestedUNet((4, 6))
    ema = Ema(network, 0.5)
    expected = [parameter.clone() for parameter in network.parameters()]
    for step in range(12):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
        ema.update(step)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = [kept * old + (1 - kept) * new for old, new in zip(expected, network.parameters(), strict=True)]
    for own, value in zip(ema.network.parameters(), expected, strict=True):
        torch.testing.assert_close(own.detach(), value.detach())
        assert not own.requires_grad


def test_network_with_recomputed_statistics_computes_in_use_what_it_computes_in_training():
    """The variance in use is the unbiased one, n / (n - 1) times that in training; n is large."""
    torch.manual_seed(0)
    network = NestedUNet((4, 6, 8), dropout=0.5)
    image = torch.randn(16, 3, 64, 64)
    ema = Ema(network, 0.9)
    for step in range(5):  # weights that no running statistics know
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        ema.update(step)
    recompute_statistics(ema.network, [(image, image)], CPU, torch.float32)
    trained = copy.deepcopy(ema.network).train()
    for module in trained.modules():
        if isinstance(module, Block | NestedUNet):
            module.dropout = 0.0
    with torch.no_grad():
        in_use, in_training = ema.network(image), trained(image)
    assert not any(module.training for module in ema.network.modules())
    for used, expected in zip(in_use, in_training, strict=True):
        torch.testing.assert_close(used, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("synchronised", [False, True])  # which alone computes as the plain one
def test_statistics_over_several_batches_are_the_means_of_theirs(synchronised):
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3, momentum=None))
    if synchronised:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    batches = [(torch.randn(4, 3, 8, 8) * scale, torch.zeros(4)) for scale in (1, 2, 3)]
    network(batches[0][0] + 100)  # forgotten
    recompute_statistics(network, batches, CPU, torch.float32)
    means = torch.stack([image.mean(dim=(0, 2, 3)) for image, _ in batches])
    variances = torch.stack([image.var(dim=(0, 2, 3)) for image, _ in batches])
    torch.testing.assert_close(network.get_buffer("0.running_mean"), means.mean(dim=0))
    torch.testing.assert_close(network.get_buffer("0.running_var"), variances.mean(dim=0))
