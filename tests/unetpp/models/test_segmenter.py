import numpy as np
import pytest
import torch

from tests.unetpp.network.classic import with_lived_in_norms
from unetpp import NestedUNet, Segmenter, UserError
from unetpp.data.scaling import scale, standardise
from unetpp.engines.torch_engine import TorchEngine
from unetpp.inference.tiles import predict_tiled
from unetpp.models.model_file import Trained, load_model


@pytest.fixture
def trained() -> Trained:
    torch.manual_seed(0)
    return Trained(with_lived_in_norms(NestedUNet((4, 6, 8))), 96, {"epoch": 3})


@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 30), (16, 16), (33, 17)])
def test_images_of_any_size_give_finite_probabilities_of_that_size(size, num_classes):
    segmenter = Segmenter(NestedUNet((4, 6, 8, 10), num_classes=num_classes)).eval()
    probs = segmenter(torch.rand(2, 3, *size))
    assert probs.shape == (2, num_classes, *size)
    assert probs.isfinite().all()
    assert ((probs >= 0) & (probs <= 1)).all()


def test_legal_size_is_not_changed_by_padding(trained):
    image = torch.rand(2, 3, 16, 24)
    with torch.inference_mode():
        expected = trained.network(standardise(image))[0].sigmoid()
        torch.testing.assert_close(trained.segmenter(1)(image), expected, atol=0, rtol=0)


def test_exposure_and_bits_of_the_camera_change_nothing():
    """Images of 8 bits, of 12 bits in 16, dimmed and brighter: the network sees the same, but for the floor."""
    image = torch.rand(2, 3, 24, 20)
    expected = standardise(image)
    torch.testing.assert_close(expected.mean(dim=(-2, -1)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(expected.std(dim=(-2, -1), correction=0), torch.ones(2, 3), atol=0.01, rtol=0)
    for gain, offset in ((1 / 16, 0.0), (0.5, 0.4), (0.1, 0.9)):
        torch.testing.assert_close(standardise(gain * image + offset), expected, atol=0.2, rtol=0.06)
    assert torch.equal(standardise(torch.full((1, 3, 8, 8), 0.25)), torch.zeros(1, 3, 8, 8))


def test_images_of_a_batch_are_standardised_apart():
    image = torch.rand(2, 3, 16, 16) * torch.tensor([1.0, 0.05]).view(2, 1, 1, 1)
    torch.testing.assert_close(standardise(image)[1:], standardise(image[1:]))


def test_scale_uses_the_range_of_the_type():
    assert scale(np.full((1, 2, 3), 255, np.uint8)).unique().tolist() == [1.0]
    assert scale(np.full((1, 2, 1), 65535, np.uint16)).shape == (1, 1, 2)
    with pytest.raises(UserError, match="float64"):
        scale(np.zeros((2, 2, 3)))


@pytest.mark.parametrize(("low", "high"), [(-1000, 3000), (0, 1), (0.25, 0.75), (-1e30, 1e30), (7e-30, 8e-30)])
def test_floats_are_scaled_by_their_own_least_and_greatest_value(low, high):
    image = np.linspace(low, high, 60).astype(np.float32).reshape(4, 5, 3)
    scaled = scale(image)
    assert (scaled.min(), scaled.max()) == (0, 1)
    np.testing.assert_allclose(scaled.permute(1, 2, 0).reshape(-1), np.linspace(0, 1, 60), atol=1e-6)


@pytest.mark.parametrize("value", [0, -3.5, 1e30])
def test_an_image_of_one_float_value_becomes_zeros(value):
    assert not scale(np.full((4, 5, 3), value, np.float32)).any()


@pytest.mark.parametrize("multilabel", [False, True])
def test_ensemble_is_the_weighted_mean_of_the_probabilities_of_its_heads(multilabel):
    torch.manual_seed(0)
    network = with_lived_in_norms(NestedUNet((4, 6, 8, 10), num_classes=3, multilabel=multilabel))
    trained, image = Trained(network, None), torch.rand(2, 3, 16, 24)  # a size that no depth pads
    each = {depth: trained.segmenter(depth)(image) for depth in trained.depths}
    torch.testing.assert_close(trained.ensemble()(image), torch.stack(list(each.values())).mean(dim=0))
    torch.testing.assert_close(trained.ensemble({1: 1, 2: 3})(image), 0.25 * each[1] + 0.75 * each[2])
    assert trained.ensemble({1: 1, 2: 3}).network.depth == 2  # no deeper than its heads ask for
    torch.testing.assert_close(trained.ensemble({3: 5})(image), each[3])


@pytest.mark.parametrize("heads", [{}, {4: 1.0}, {1: 0.0}, {1: 1.0, 2: -1.0}])
def test_heads_that_cannot_be_averaged_are_refused_with_those_that_can(heads):
    with pytest.raises(UserError, match=r"heads.*1, 2"):
        Trained(NestedUNet((4, 6, 8)), None).ensemble(heads)


def test_padding_to_a_canvas_is_standardised_by_the_image_alone_and_cut_off_again():
    torch.manual_seed(0)
    network = with_lived_in_norms(NestedUNet((4, 6, 8))).eval()
    padded = Trained(network, (32, 48), fit="pad")
    image = torch.rand(2, 3, 32, 20)
    with torch.inference_mode():
        by_hand = torch.nn.functional.pad(standardise(image), (0, 28, 0, 0), mode="replicate")
        expected = network(by_hand)[-1].sigmoid()[..., :20]
        assert torch.equal(padded.segmenter()(image), expected)
        engine = TorchEngine(padded.segmenter(), padded.about)
        assert np.array_equal(predict_tiled(engine, image.numpy()), expected.numpy())
        larger = torch.rand(1, 3, 40, 60)
        assert torch.equal(padded.segmenter()(larger), Trained(network, 32).segmenter()(larger))


def test_tiles_of_a_canvas_give_what_the_padded_image_gives_as_a_whole():
    torch.manual_seed(0)
    trained = Trained(NestedUNet((2, 3), upsampling="bilinear"), (64, 320), fit="pad")
    engine, image = TorchEngine(trained.segmenter(), trained.about), torch.rand(1, 3, 60, 150).numpy()
    np.testing.assert_allclose(predict_tiled(engine, image, 128), engine(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(96, 64), [64, 96], 96, None])
def test_a_model_file_keeps_a_rectangle_and_how_images_were_fitted(size, tmp_path):
    network = NestedUNet((4, 6))
    for fit in ("stretch", "pad"):
        trained = Trained(network, size, fit=fit)
        trained.save(tmp_path / "model.safetensors")
        again = load_model(tmp_path)
        assert (again.size, again.fit, again.frame) == (trained.size, fit, trained.frame)
        assert again.folded(1).about.canvas == trained.about.canvas
        # Readers of before know squares, stretched, and must refuse all else.
        is_old = fit == "stretch" and size in (96, None)
        assert (b'\\"format\\": 3' in (tmp_path / "model.safetensors").read_bytes()) == is_old
