import pytest
import torch
from torch import nn

from tests.unetpp.network.classic import ClassicNestedUNet, ClassicUNet, with_lived_in_norms
from tests.unetpp.network.counts import FULL, count, dense_parameters
from unetpp import NestedUNet, UserError, from_classic, prune
from unetpp.network.losses import LOSSES, deep_supervision_loss
from unetpp.network.model import NORMS, SKIPS, UPSAMPLINGS
from unetpp.training.loop import make_loss

SMALL = (2, 3, 4, 5, 6, 7, 8)
PATTERNS = [
    ("dense", True),
    ("dense", False),
    ("short", True),
    ("short", False),
    ("encoder", True),
    ("plain", False),
]


def test_parameter_counts_are_those_of_the_published_networks():
    assert count(NestedUNet(FULL, deep_supervision=False)) == 9_163_329
    assert count(NestedUNet(FULL)) == 9_163_428
    assert count(NestedUNet(FULL, skips="plain", deep_supervision=False)) == 7_852_545


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_parameter_counts_follow_the_closed_form(depth):
    widths = FULL[: depth + 1]
    assert count(NestedUNet(widths, 5, 3)) == dense_parameters(widths, depth, 5, 3)


CLASSIC = {
    "one class": lambda widths: ClassicNestedUNet(widths, 1, 3, True),
    "classes, one head": lambda widths: ClassicNestedUNet(widths, 3, 3, False),
    "plain": ClassicUNet,
}


@pytest.mark.parametrize("which", CLASSIC)
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "as DataParallel saves it"])
def test_classic_checkpoint_gives_the_classic_outputs(which, prefix):
    torch.manual_seed(0)
    classic = with_lived_in_norms(CLASSIC[which]([4, 8, 12, 16, 20]))
    ours = from_classic({prefix + key: value for key, value in classic.state_dict().items()})
    assert (ours.skips == "plain") == (which == "plain")
    image = torch.randn(2, 3, 48, 32)
    with torch.inference_mode():
        for mine, theirs in zip(ours(image), classic(image), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_strange_or_partial_checkpoint_is_refused_by_name():
    weights = ClassicNestedUNet([2, 3, 4, 5, 6]).state_dict()
    with pytest.raises(UserError, match=r"encoder\.weight"):
        from_classic(weights | {"encoder.weight": torch.zeros(1)})
    weights.pop("conv2_1.conv1.weight")
    with pytest.raises(UserError, match=r"2_1\.conv1\.weight"):
        from_classic(weights)


@pytest.mark.parametrize(("skips", "deep_supervision"), PATTERNS)
@pytest.mark.parametrize("depth", range(1, 7))
def test_every_parameter_gets_a_gradient(depth, skips, deep_supervision):
    torch.manual_seed(0)
    network = NestedUNet(SMALL[: depth + 1], 2, 3, skips, deep_supervision)
    image = torch.randn(2, 2, 2 * 2**depth, 2**depth)
    mask = torch.randint(0, 3, (2, *image.shape[-2:]))
    deep_supervision_loss(network(image), mask).mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    heads = [network.get_parameter(f"heads.{d}.weight").grad for d in network.depths]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in heads)


@pytest.mark.parametrize(("skips", "deep_supervision"), PATTERNS)
def test_logits_have_the_image_size_and_are_a_tuple_whatever_the_flags(skips, deep_supervision):
    network = NestedUNet((2, 3, 4), 1, 5, skips, deep_supervision).eval()
    logits = network(torch.randn(2, 1, 8, 12))
    assert isinstance(logits, tuple)
    assert [one.shape for one in logits] == [(2, 5, 8, 12)] * (2 if deep_supervision else 1)


def test_illegal_size_is_refused_with_the_size_to_pad_to():
    network = NestedUNet((2, 3, 4, 5, 6))
    with pytest.raises(UserError, match=r"100x70.*divisible by 16.*112x80"):
        network(torch.zeros(1, 3, 100, 70))


@pytest.mark.parametrize("widths", [(), (8,), (8, 0), (8, -1), (8, 2.5), (2,) * 8])
def test_widths_that_make_no_network_are_refused(widths):
    with pytest.raises(UserError, match="widths"):
        NestedUNet(widths)


def test_networks_with_parts_that_never_learn_are_refused():
    with pytest.raises(UserError, match="no shallow heads"):
        NestedUNet((2, 3, 4), skips="plain")
    with pytest.raises(UserError, match="never learn"):
        NestedUNet((2, 3, 4), skips="encoder", deep_supervision=False)
    with pytest.raises(UserError, match="skips"):
        NestedUNet((2, 3, 4), skips="sparse")


def test_transposed_convolutions_have_the_closed_form_count_of_parameters():
    w, depth = FULL, 4
    ups = sum(depth - i for i in range(depth))
    total = dense_parameters(w, heads=4)
    for i in range(depth):
        nodes = depth - i
        total += nodes * (4 * w[i + 1] * w[i] + w[i])  # 2x2 kernels and a bias
        total -= nodes * 9 * (w[i + 1] - w[i]) * w[i]  # and blocks that see w[i] channels of them, not w[i + 1]
    network = NestedUNet(w, upsampling="transposed")
    assert len(network.ups) == ups
    assert count(network) == total


def test_group_norm_groups_divide_every_width():
    for width in (1, 3, 4, 6, 12, 35, 64):
        norm = NestedUNet((width, width), norm="group").get_submodule("nodes.0_0.norm1")
        assert isinstance(norm, nn.GroupNorm)
        assert width % norm.num_groups == 0
        assert norm.num_groups <= 8


def test_norms_but_batch_know_each_image_alone():
    image = torch.randn(4, 3, 8, 8)
    for norm, alone in (("batch", False), ("instance", True), ("group", True)):
        torch.manual_seed(0)
        network = NestedUNet((4, 6), norm=norm).train()
        same = torch.allclose(network(image)[0][:1], network(image[:1])[0], atol=1e-5)
        assert same == alone


def test_dropout_drops_in_training_alone_and_by_torchs_seed():
    network = NestedUNet((8, 8), dropout=0.5)
    image = torch.randn(1, 3, 8, 8)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return network(image)[0]

    network.train()
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.allclose(drawn(0), drawn(1))
    network.eval()
    assert torch.equal(drawn(0), drawn(1))


def test_weights_begin_with_the_variance_that_relus_keep():
    torch.manual_seed(0)
    weight = NestedUNet((64, 128)).get_parameter("nodes.1_0.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)


def test_more_labels_than_a_mask_can_hold_are_refused():
    with pytest.raises(UserError, match="at most 7"):
        NestedUNet((2, 3), num_classes=8, multilabel=True)


@pytest.mark.parametrize("details", [{"norm": "layer"}, {"upsampling": "nearest"}, {"dropout": 1.0}])
def test_details_that_are_none_are_refused_with_those_that_are(details):
    with pytest.raises(UserError, match=next(iter(details))):
        NestedUNet((2, 3), **details)


def test_a_row_more_in_a_table_is_all_that_a_new_pattern_norm_upsampling_or_loss_takes(monkeypatch):
    """Without another line of code it is built, trained with every head, pruned and saved as the others."""
    monkeypatch.setitem(SKIPS, "two", lambda j: range(max(0, j - 2), j))
    monkeypatch.setitem(NORMS, "none", lambda _width: nn.Identity())
    monkeypatch.setitem(UPSAMPLINGS, "nearest", lambda below, _width: (Nearest(), below))
    monkeypatch.setitem(LOSSES, "l1", lambda logits, truth, valid, *_, **__: l1(logits, truth * valid))
    torch.manual_seed(0)
    network = NestedUNet((2, 3, 4, 5), skips="two", norm="none", upsampling="nearest")
    image, mask = torch.randn(2, 3, 16, 16), torch.randint(0, 2, (2, 16, 16))
    make_loss("l1", "mean", network.depths)(network(image), mask).mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    network.eval()
    with torch.inference_mode():
        assert torch.equal(prune(network, 2)(image)[-1], network(image)[1])
        again = NestedUNet(**network.config())
        again.load_state_dict(network.state_dict())
        assert torch.equal(again.eval()(image)[-1], network(image)[-1])


class Nearest(nn.Module):
    def forward(self, x: torch.Tensor, size: torch.Size) -> torch.Tensor:
        return nn.functional.interpolate(x, size=size)


def l1(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (logits.sigmoid() - truth).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_dense_gradients_of_upsamplings_change_no_bit(form):
    torch.manual_seed(0)
    network = NestedUNet((4, 6, 8)).train().to(memory_format=form)  # pyright: ignore[reportCallIssue]
    image, found = torch.randn(2, 3, 16, 16).to(memory_format=form), []
    for dense in (True, False):
        for up in network.ups.values():
            up.training = dense
        network.zero_grad()
        torch.stack([logits.square().sum() for logits in network(image)]).sum().backward()
        found.append([one.grad for one in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("num", [1, 2])
def test_every_convolution_sees_channels_last_for_one_image_too(num, train):
    network = NestedUNet((4, 6, 8)).train(train).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    seen = []
    for one in network.modules():
        if isinstance(one, nn.Conv2d):
            one.register_forward_hook(
                lambda _module, inputs, _output: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    network(torch.randn(num, 3, 16, 16).to(memory_format=torch.channels_last))
    assert len(seen) == 14
    assert all(seen)
