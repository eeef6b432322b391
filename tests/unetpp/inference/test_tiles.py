"""Laws of tiles: together they are the whole image."""

import numpy as np
import pytest
import torch

from unetpp import NestedUNet, Segmenter
from unetpp.engines.torch_engine import TorchEngine
from unetpp.images.frame import Frame
from unetpp.inference.tiles import predict_image, predict_tiled, spans, to_mask, to_own_size
from unetpp.models.about import About
from unetpp.network import masks


def segmenter(widths=(4, 6), **options) -> Segmenter:
    torch.manual_seed(0)
    network = NestedUNet(widths, **options)
    with torch.no_grad():
        for norm in (one for one in network.modules() if isinstance(one, torch.nn.BatchNorm2d)):
            norm.get_buffer("running_mean").normal_(0, 0.1)
            norm.get_buffer("running_var").uniform_(0.5, 2)
    return Segmenter(network.eval())


def engine(one: Segmenter, frame: Frame | None = None) -> TorchEngine:
    about = About(one.network.config(), frame and frame.size, fit=frame.fit if frame else "stretch")
    return TorchEngine(Segmenter(one.network, canvas=about.canvas), about)


def picture(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """An image that is darker on one side, so that a tile's own mean is not the whole's."""
    noise = torch.rand((1, channels, height, width), generator=torch.Generator().manual_seed(1))
    return noise * torch.linspace(0.2, 1, width)


@pytest.mark.parametrize("widths", [(4, 6), (4, 6, 8)])
@pytest.mark.parametrize("options", [{"upsampling": "bilinear"}, {"upsampling": "transposed", "skips": "encoder"}])
@pytest.mark.parametrize("size", [(333, 290), (64, 401), (305, 33)])
def test_tiles_give_what_the_whole_image_gives(widths, options, size):
    one, image = segmenter(widths, **options), picture(*size)
    seen = []
    one.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    tiled = predict_tiled(engine(one), image.numpy(), tile_px=100)
    assert len(seen) > 1
    assert len(set(seen)) == 1
    assert max(seen[0]) < max(size)
    np.testing.assert_allclose(tiled, engine(one)(image.numpy()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("bound", "options"),
    [(0.02, {"upsampling": "bilinear_aligned"}), (0.05, {"upsampling": "bilinear", "norm": "group"})],
    ids=["aligned", "group"],
)
def test_what_looks_at_the_whole_differs_within_the_stated_bound_and_without_seams(bound, options):
    one, image = segmenter((4, 6, 8), **options), picture(333, 290)
    tiled = torch.from_numpy(predict_tiled(engine(one), image.numpy(), tile_px=160))
    with torch.inference_mode():
        whole = one(image)
    assert 1e-6 < (tiled - whole).abs().mean() < bound
    steps = (tiled - whole).diff(dim=-1).abs().mean(dim=(0, 1, 2))  # from each column to the next
    assert steps.max() < 3 * steps.median()  # none stands out, not where tiles meet either


def test_an_image_that_fits_is_not_cut():
    one, image = segmenter(), picture(100, 100)
    seen = []
    one.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    with torch.inference_mode():
        assert np.array_equal(predict_tiled(engine(one), image.numpy()), one(image).numpy())
    assert len(seen) == 2


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_nothing_farther_than_the_reach_matters(depth):
    one = segmenter((4, 6, 8, 10)[: depth + 1], upsampling="bilinear")
    reach, multiple = engine(one).about.receptive_px, 2**depth
    side = 2 * (reach // multiple + 2) * multiple
    image = torch.rand((1, 3, side, side), requires_grad=True)
    (gradient,) = torch.autograd.grad(one.probs(image)[0, 0, side // 2, side // 2], image)
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0]
    assert side // 2 - reach <= rows.min()
    assert rows.max() <= side // 2 + reach
    assert rows.max() - rows.min() > reach  # nor is the bound far too large


@pytest.mark.parametrize("length", [1, 99, 100, 101, 128, 160, 161, 999])
def test_weights_of_overlapping_tiles_add_up_to_one(length):
    padded = -(-length // 4) * 4
    total, found = torch.zeros(padded), spans(length, tile=100, halo=16, fade=8, multiple=4)
    for start, weights in found:
        assert start % 4 == 0
        total[start : start + len(weights)] += torch.from_numpy(weights)
    torch.testing.assert_close(total, torch.ones(padded))
    assert len({len(weights) for _, weights in found}) == 1  # one graph serves them all


@pytest.mark.parametrize(
    ("frame", "shape"), [(None, (40, 70)), (Frame((32, 32)), (150, 97)), (Frame((32, 48), "pad"), (150, 97))]
)
def test_probabilities_have_the_images_size_whether_it_was_resized_or_not(frame, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    probs = predict_image(engine(segmenter((4, 6, 8), num_classes=3), frame), image)
    assert probs.shape == (3, *shape)
    np.testing.assert_allclose(probs.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("shape", [(150, 97), (20, 31), (1, 200), (48, 48)])
def test_probabilities_return_to_a_size_as_torch_interpolates(shape):
    probs = np.random.default_rng(0).random((2, 3, 48, 48), np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(probs), shape, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(to_own_size(probs, shape), expected.numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("channels", "multilabel"), [(1, False), (4, False), (3, True)])
def test_masks_are_those_of_the_tensors(channels, multilabel):
    probs = np.random.default_rng(0).random((2, channels, 9, 11), np.float32)
    expected = masks.to_mask(torch.from_numpy(probs), channels, multilabel).numpy()
    assert np.array_equal(to_mask(probs, channels, multilabel), expected)


def test_what_takes_no_parts_gets_the_image_as_a_whole():
    image, seen = np.random.default_rng(0).random((1, 3, 130, 70), np.float32), []
    one = engine(segmenter())
    one.takes_parts = False
    one.segmenter.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2]))
    predict_tiled(one, image, tile_px=100)
    assert seen == [130]
