"""Networks of timm as encoders: shapes, gradients, pruning, files and exports, with weights drawn at random."""

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from pipelines.evaluation.predictor import Heads
from tests.unetpp.network.counts import count
from tests.unetpp.network.imagenet import LITE, OTHERS, imagenet_weights
from unetpp import NestedUNet, Predictor, Trained, UserError, fit, load, prune, transfer
from unetpp.export.graphs import capture, save_onnx
from unetpp.export.verification import compare
from unetpp.models.about import read_about
from unetpp.models.segmenter import Segmenter
from unetpp.network import encoders
from unetpp.network.encoders import load_weights, read_weights
from unetpp.network.folding import fold
from unetpp.network.model import SKIPS
from unetpp.network.profiling import count_macs, estimate_training_mib

EVERY = (LITE, *(pytest.param(name, marks=pytest.mark.nightly) for name in OTHERS))
WIDTHS = (4, 6, 8, 10, 12, 14)
# Strides of the maps of timm, by level; the other levels are our own.
LEVELS = dict.fromkeys((LITE, "resnet34", "densenet121", "mobilenetv3_large_100"), (1, 2, 3, 4, 5))
LEVELS |= dict.fromkeys(("convnext_tiny", "pvt_v2_b0"), (2, 3, 4, 5)) | {"vgg19": (0, 1, 2, 3, 4, 5)}


def built(name: str, widths=WIDTHS, channels: int = 3, **details) -> NestedUNet:
    torch.manual_seed(0)
    return NestedUNet(widths, channels, 2, encoder=name, **details)


def lived_in(network: NestedUNet) -> NestedUNet:
    """In eval mode, with statistics as after a training run."""
    network(torch.randn(2, network.in_channels, 64, 64))
    return network.eval()


@pytest.mark.parametrize("name", EVERY)
def test_every_level_has_its_shape_and_every_parameter_a_gradient(name):
    network = built(name, channels=2)
    assert network.pyramid is not None
    assert tuple(network.pyramid.channels) == LEVELS[name]
    assert {f"{i}_0" for i in range(6)} - set(network.nodes) == {f"{i}_0" for i in LEVELS[name]}
    image = torch.randn(2, 2, 64, 96)
    maps = network.pyramid(image)
    assert [one.shape[1:] for one in maps.values()] == [
        (network.pyramid.channels[i], 64 // 2**i, 96 // 2**i) for i in LEVELS[name]
    ]
    logits = network(image)
    assert [one.shape for one in logits] == [(2, 2, 64, 96)] * 5
    torch.stack([one.square().sum() for one in logits]).sum().backward()
    assert [key for key, one in network.named_parameters() if one.grad is None or not one.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", EVERY)
def test_pruned_network_equals_its_head_bit_for_bit_and_drops_the_deeper_stages(name):
    network, image = lived_in(built(name)), torch.randn(1, 3, 64, 96)
    pruned = {depth: prune(network, depth) for depth in network.depths}
    with torch.inference_mode():
        logits = network(image)
        for depth, one in pruned.items():
            assert torch.equal(one(image)[0], logits[depth - 1])
    counts = [count(one) for one in pruned.values()]
    assert counts == sorted(set(counts))
    assert counts[1] < count(network) / 2
    assert pruned[1].encoder == (name if 1 in LEVELS[name] else None)  # where no map is left, it is as any other


@pytest.mark.parametrize("skips", SKIPS)
def test_every_skip_pattern_takes_an_encoder(skips):
    network = built(LITE, WIDTHS[:4], skips=skips, deep_supervision=skips != "plain")
    logits = network(torch.randn(2, 3, 16, 16))
    torch.stack([one.square().sum() for one in logits]).sum().backward()
    assert [key for key, one in network.named_parameters() if one.grad is None] == []
    assert len(logits) == (1 if skips == "plain" else 3)


@pytest.mark.parametrize("name", EVERY)
def test_saved_and_exported_networks_give_the_same_numbers(name, tmp_path):
    trained = Trained(lived_in(built(name)), None)
    trained.save(tmp_path / "model.safetensors")
    again = load(tmp_path)
    assert again.network.config() == trained.network.config()
    depth = 2 if name == LITE else 3
    segmenter, image = trained.segmenter(depth), torch.rand(1, 3, 30, 43)
    with torch.inference_mode():
        probs = segmenter(image)
        assert torch.equal(again.segmenter(depth)(image), probs)
    folded = trained.folded(depth).segmenter()
    with torch.inference_mode():
        torch.testing.assert_close(folded(image), probs, atol=1e-5, rtol=0)
    save_onnx(capture(folded), tmp_path / "model.onnx", 20)
    assert all(one.max_difference < 1e-4 for one in compare(tmp_path, trained, {"model.onnx": depth}))


def test_images_below_what_an_encoder_takes_are_padded_for_every_head_alike():
    network, image, seen = prune(lived_in(built(LITE)), 2, keep_heads=True), torch.rand(1, 3, 9, 13), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    heads = Heads(network).eval()
    with torch.inference_mode():
        every = heads(image)
        heads.logits(image)
        torch.testing.assert_close(every[:, -network.num_classes :], Segmenter(network).eval()(image))
    assert seen == [(32, 32)] * 3


def test_file_names_its_encoder_in_a_format_of_its_own(tmp_path, monkeypatch):
    Trained(built(LITE), None).save(tmp_path / "model.safetensors")
    about = read_about(tmp_path)
    assert about is not None
    assert about.encoder == LITE
    assert "encoder tf_efficientnet_lite0, widths 4 6" in about.describe((1,))
    assert b'"format": 5'.replace(b'"', b'\\"') in (tmp_path / "model.safetensors").read_bytes()
    assert about.receptive_px == 2 * Trained(NestedUNet(WIDTHS), None).about.receptive_px
    monkeypatch.setattr("unetpp.models.about.FORMATS", (3, 4))  # as readers of before have it
    with pytest.raises(UserError, match="found format 5; this version of unetpp reads 3, 4"):
        load(tmp_path)


def test_network_without_encoder_never_imports_timm(monkeypatch):
    monkeypatch.setattr(encoders, "import_timm", lambda: pytest.fail("imported"))
    network = NestedUNet((4, 6, 8))
    assert "encoder" not in network.config()
    assert not any(key.startswith("pyramid") for key in network.state_dict())


def test_encoder_that_is_none_is_refused(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"'resnet43'.*resnet"):
        NestedUNet((2, 3), encoder="resnet43")
    with pytest.raises(UserError, match="not a network of timm"):  # nothing of a stranger's file is fetched
        NestedUNet((2, 3), encoder="hf-hub:someone/resnet34")
    with pytest.raises(UserError, match="maps of the strides 16"):
        NestedUNet((2, 3), encoder="vit_tiny_patch16_224")
    with pytest.raises(UserError, match=r"swin_\w+ does not take images of 64x64 px .*224"):
        built("swin_tiny_patch4_window7_224", (2, 3, 4))(torch.zeros(1, 3, 64, 64))
    Trained(built(LITE, (2, 3)), None).save(tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model\.safetensors: encoder: timm is not installed: pip install"):
        load(tmp_path)


@pytest.mark.parametrize(("encoder", "share", "frozen"), [(None, 0.1, 0), (None, 1, 1), (LITE, 0, 0)])
def test_settings_that_an_encoder_cannot_follow_are_refused(encoder, share, frozen):
    settings = {"encoder_lr": share, "freeze_encoder_epochs": frozen}
    with pytest.raises(UserError, match="encoder_lr: found"):
        fit(NestedUNet((2, 3), encoder=encoder), (np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), int)), **settings)


def test_torchvision_whose_operators_do_not_load_is_dealt_with(monkeypatch, tmp_path):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("from torchvision import _meta_registrations\nwhole = True\n")
    (broken / "_meta_registrations.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")\n')
    with monkeypatch.context() as patch:
        kept = {one: sys.modules.pop(one) for one in list(sys.modules) if one.partition(".")[0] == "torchvision"}
        patch.syspath_prepend(tmp_path)
        patch.setitem(sys.modules, "timm", ModuleType("timm"))
        try:
            assert encoders.import_timm().__name__ == "timm"
            assert importlib.import_module("torchvision").whole
        finally:
            for one in [one for one in sys.modules if one.partition(".")[0] == "torchvision"]:
                del sys.modules[one]
            sys.modules.update(kept)


def test_weights_move_between_networks_of_one_encoder_alone():
    source = built(LITE, WIDTHS[:4])
    target = NestedUNet(WIDTHS[:3], 3, 2, encoder=LITE)
    assert transfer(source, target) == []
    assert torch.equal(target.state_dict()["pyramid.model.conv_stem.weight"], source.pyramid.model.conv_stem.weight)  # pyright: ignore
    with pytest.raises(UserError, match=r"encoder: found tf_efficientnet_lite0 .* and None"):
        transfer(source, NestedUNet(WIDTHS[:4], 3, 2))


def test_costs_count_the_encoder():
    network = built("pvt_v2_b0", WIDTHS[:4]).eval()
    plain = NestedUNet(WIDTHS[:4], 3, 2).eval()
    image = torch.randn(1, 3, 32, 32)
    assert network.pyramid is not None
    with torch.no_grad():
        own = count_macs(network.pyramid, image)
    linear = sum(one.weight.numel() for one in network.modules() if isinstance(one, torch.nn.Linear))
    assert count_macs(network, image) > own > linear  # which attention and its layers are most of
    assert estimate_training_mib(network, 2, 64) > estimate_training_mib(plain, 2, 64)


def test_gradients_that_processors_are_slow_at_in_bf16_are_computed_in_fp32():
    pyramid, image = built(LITE, WIDTHS[:4]).pyramid, torch.randn(2, 3, 64, 64)
    assert pyramid is not None
    convs = [one for one in pyramid.modules() if isinstance(one, encoders._Depthwise) and one.groups > 1]
    assert {(one.kernel_size, one.stride) for one in convs} == {((k, k), (s, s)) for k in (3, 5) for s in (1, 2)}
    for conv in convs:
        given = torch.randn(2, conv.in_channels, 12, 12).bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            (theirs := conv(given)).float().sum().backward()
        found, wanted = conv.weight.grad, torch.autograd.grad(conv(given.float()).sum(), conv.weight)[0]
        assert theirs.dtype == torch.bfloat16
        usual = (conv.kernel_size, conv.stride) == ((3, 3), (1, 1))
        assert torch.equal(found, wanted) != usual  # pyright: ignore[reportArgumentType]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert {one.dtype for one in pyramid.eval()(image).values()} == {torch.bfloat16}


def test_checkpointing_of_levels_leaves_the_encoder_and_changes_no_gradient():
    found = []
    for levels in (0, 2):
        network = built(LITE, WIDTHS[:3])
        network.checkpoint_levels = levels
        torch.stack([one.square().sum() for one in network(torch.ones(2, 3, 16, 16).cumsum(-1))]).sum().backward()
        found.append([one.grad for one in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_weights_of_a_file_are_taken_with_any_prefix_and_any_channels(tmp_path):
    source = built(LITE, WIDTHS[:4]).pyramid
    assert source is not None
    assert source.model is not None
    theirs = source.model.state_dict()
    torch.save({"state_dict": {f"module.encoder.{key}": one for key, one in theirs.items()}}, tmp_path / "one.pth")
    deeper = NestedUNet(WIDTHS[:4], 5, 2, encoder=LITE).pyramid
    assert deeper is not None
    assert deeper.model is not None
    load_weights(deeper, read_weights(tmp_path / "one.pth"), "one.pth")
    found = deeper.model.state_dict()
    assert found.pop("conv_stem.weight").shape[1] == 5
    assert all(torch.equal(one, theirs[key]) for key, one in found.items())
    other = NestedUNet(WIDTHS[:4], encoder="resnet34").pyramid
    assert other is not None
    with pytest.raises(UserError, match=r"one\.pth: found tensors such as module\.encoder\.conv_stem\.weight"):
        load_weights(other, read_weights(tmp_path / "one.pth"), "one.pth")
    with pytest.raises(UserError, match=r"bn1\.weight: found no such tensor"):
        load_weights(source, {"conv_stem.weight": theirs["conv_stem.weight"]}, "part.pth")
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "none.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pth")  # a pickled module
    with pytest.raises(UserError, match=r"whole\.pth: cannot be read \(.*nothing is unpickled\); expected"):
        read_weights(tmp_path / "whole.pth")


@pytest.mark.parametrize("name", ["resnet18", *EVERY[1:]])
def test_weights_of_every_encoder_are_found_by_their_prefix(name):
    whole, pyramid = encoders.import_timm().create_model(name).state_dict(), built(name, WIDTHS[:4]).pyramid
    assert pyramid is not None
    assert pyramid.model is not None
    load_weights(pyramid, {f"net.{key}": one for key, one in whole.items()}, "whole")
    assert all(torch.equal(one, whole[key]) for key, one in pyramid.model.state_dict().items())
    with pytest.raises(UserError, match="twice: found 2 tensors named"):
        load_weights(pyramid, {f"{net}.{key}": one for net in ("net", "ema") for key, one in whole.items()}, "twice")


def test_imagenet_weights_are_trained_pruned_exported_and_predict(tmp_path):
    network = built(LITE, WIDTHS[:4])
    assert network.pyramid is not None
    load_weights(network.pyramid, imagenet_weights(), "package")
    images = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
    masks = (images[..., 0] > 128).astype(np.uint8)
    before = network.state_dict()["pyramid.model.conv_stem.weight"].clone()
    told = []
    trained = fit(
        network,
        (images, masks),
        epochs=3,
        batch_size=2,
        encoder_lr=0.1,
        freeze_encoder_epochs=1,
        after_epoch=lambda one: told.append(
            torch.equal(one.network.state_dict()["pyramid.model.conv_stem.weight"], before)
        ),
    )
    assert told == [True, False, False]  # frozen in the first epoch, and never after
    folded = fold(prune(trained.network, 1))
    assert Predictor(Trained(folded, None)).mask(images[0]).shape == (32, 32)
    save_onnx(capture(Trained(folded, None).segmenter()), tmp_path / "model.onnx", 20)
