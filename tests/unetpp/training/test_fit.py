import copy

import numpy as np
import pytest
import torch

import unetpp
from unetpp import UserError
from unetpp.network.losses import deep_supervision_loss
from unetpp.training.choice import steady
from unetpp.training.pairs import Pairs


def circles(num: int = 12, size: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on grey: images (N, H, W, 3) uint8 and masks (N, H, W) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centres = rng.uniform(8, size - 8, (num, 2, 1, 1))
    masks = (((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) < 49).astype(np.uint8)
    images = (masks[..., None] * 90 + rng.normal(80, 20, (num, size, size, 3))).clip(0, 255).astype(np.uint8)
    return images, masks


def network(num_classes: int = 1, widths: tuple[int, ...] = (4, 6, 8), channels: int = 3) -> unetpp.NestedUNet:
    torch.manual_seed(0)
    return unetpp.NestedUNet(widths, channels, num_classes)


def quick(begin, dataset, val=None, **how) -> unetpp.Trained:
    return unetpp.fit(begin, dataset, val, **{"epochs": 2, "precision": "fp32", "after_epoch": None} | how)


def weights(trained: unetpp.Trained) -> dict[str, torch.Tensor]:
    return trained.network.state_dict()


def is_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


def test_it_learns_and_its_result_is_used_saved_and_loaded_as_any_other(tmp_path):
    images, masks = circles(24)
    begin = network()
    before = copy.deepcopy(begin.state_dict())
    trained = quick(begin, (images[:18], masks[:18]), (images[18:], masks[18:]), epochs=8, classes=["disc"])
    assert is_same(before, begin.state_dict())
    mask = unetpp.Predictor(trained, depth=2).mask(images[-1])
    assert (mask & masks[-1]).sum() / (mask | masks[-1]).sum() > 0.7
    trained.save(tmp_path / "model.safetensors")
    loaded = unetpp.load(tmp_path)
    assert loaded.classes == ["disc"]
    assert loaded.info["val_iou"]["L2"] > 0.7
    assert (unetpp.Predictor(loaded, depth=2).mask(images[-1]) == mask).all()
    again = quick(loaded, (images, masks), epochs=1)
    assert again.info["init"] == {"sha256": loaded.sha256}
    assert again.classes == ["disc"]


class Drawing(torch.utils.data.Dataset):
    """A torch Dataset as it is usual: images (C, H, W) float in [0, 1], masks (H, W) int64."""

    def __init__(self):
        self.images, self.masks = circles()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = torch.from_numpy(self.images[index]).permute(2, 0, 1) / 255
        return image, torch.from_numpy(self.masks[index]).long()


def test_the_same_call_gives_the_same_bits_whatever_holds_the_pairs():
    images, masks = circles()
    first = weights(quick(network(), (images, masks)))
    assert is_same(first, weights(quick(network(), list(zip(images, masks > 0, strict=True)))))
    assert is_same(first, weights(quick(network(), (list(images.transpose(0, 3, 1, 2)), list(masks)))))
    assert not is_same(first, weights(quick(network(), (images, masks), seed=1)))
    told = []
    for dataset in ((images, masks), Drawing()):
        quick(network(), dataset, epochs=1, after_epoch=told.append)
    assert told[0].loss == pytest.approx(told[1].loss, rel=1e-3)


def test_the_hosts_draws_stay_its_own():
    images, masks = circles()
    begin = network()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quick(begin, (images, masks), epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_of_ones_own_is_minimised():
    images, masks = circles()

    def own(logits, mask):
        return deep_supervision_loss(logits, mask).mean()

    named, mine = (quick(network(), (images, masks), loss=one) for one in ("ce_dice", own))
    assert is_same(weights(named), weights(mine))
    with pytest.raises(UserError, match=r"loss: found shape \(8, 32, 32\); expected a tensor: the mean over the batch"):
        quick(network(), (images[:8], masks[:8]), loss=lambda logits, _mask: logits[-1][:, 0])
    with pytest.raises(UserError, match=r"non-finite loss in epoch 1: of dataset\[\d\]"):
        quick(network(), (images[:8], masks[:8]), loss=lambda logits, _mask: logits[-1].mean() / 0)


def test_a_function_after_each_epoch_sees_it_and_ends_the_training(capsys):
    images, masks = circles()
    told = []

    def watch(epoch: unetpp.Epoch) -> bool:
        told.append(epoch)
        return epoch.epoch == 2

    trained = quick(network(), (images, masks), (images, masks), epochs=9, after_epoch=watch)
    assert [one.epoch for one in told] == [1, 2]
    assert told[0].val_iou.keys() == {1, 2}
    assert trained.info["epoch"] in (1, 2)
    assert isinstance(told[0].network, unetpp.NestedUNet)
    with pytest.raises(AttributeError):
        told[0].loss = 0.0
    assert quick(network(), (images, masks), epochs=2, after_epoch=print).info["epoch"] == 2
    assert capsys.readouterr().out.splitlines()[1].startswith("epoch 2 of 2: loss ")


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (
            (12, 32, 32, 4),
            (12, 32, 32),
            r"dataset\[\d+\]: found an image with 4 channels; expected 3: image\[:, :, :3\]",
        ),
        ((12, 32, 32, 3), (12, 16, 16), r"found an image of shape \(32, 32, 3\) and a mask of 16x16 px"),
        ((12, 32, 32, 3), (12, 32, 32, 2), r"found a mask of shape \(32, 32, 2\) .*mask\.argmax"),
        ((12, 30, 30, 3), (12, 30, 30), r"30x30 px; a network of depth 2 .* divisible by 4: set crop_px=28"),
        ((12, 32, 32, 3), (11, 32, 32), r"dataset: found 12 images and 11 masks"),
        ((0, 32, 32, 3), (0, 32, 32), "dataset: found no image"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_fix(images, masks, message):
    with pytest.raises(UserError, match=message):
        quick(network(), (np.zeros(images, np.uint8), np.zeros(masks, np.uint8)))


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ((0, 255), 1, "255 means unlabelled; expected 0 and 1: use mask > 0"),
        ((0, 7), 1, "found mask values from 0 to 7; expected 0 to 1; .*mask > 0"),
        ((-1, 1), 1, "found mask values from -1 to 1"),
        ((0, 300), 3, "found mask values from 0 to 300; expected 0 to 2"),
        ((0, 3), 3, r"found mask values from 0 to 3; expected 0 to 2; .*num_classes"),
    ],
)
def test_mask_values_without_a_class_are_refused(values, classes, message):
    image, mask = np.zeros((32, 32, 3), np.uint8), np.resize(np.array(values, np.int32), (32, 32))
    with pytest.raises(UserError, match=message):
        Pairs([(image, mask)], network(classes), "dataset")[0]


def test_what_is_no_dataset_network_or_choice_is_refused():
    pairs = circles(8)
    images, masks = (np.pad(one, [(0, 0), (0, 0), (0, 8), *[(0, 0)] * (one.ndim - 3)]) for one in pairs)
    wide = images, masks
    for begin, dataset, how, message in (
        (network(), (one for one in [1]), {}, "dataset: found generator; expected a sequence"),
        (network(), [1, 2], {"batch_size": 1}, r"dataset\[\d\]: found int; expected \(image, mask\)"),
        ("models/train", pairs, {}, "fit: found a network of type str; .*unetpp.load"),
        (unetpp.Trained(network().eval(), None).folded(), pairs, {}, "batch norm was folded away"),
        (network(), pairs, {"loss": "dice"}, "loss: found 'dice'; expected one of ce_dice"),
        (
            network(),
            pairs,
            {"loss": "tversky", "class_weights": [1, 2]},
            "class_weights: not used with tversky; expected",
        ),
        (network(), pairs, {"class_weights": [2]}, "class_weights: found 1 weights; expected 2, one for each class"),
        (network(), pairs, {"loss": sum, "class_weights": [1, 2]}, "class_weights: not used with your own loss"),
        (network(), pairs, {"flips": "both"}, "flips: found 'both'; expected one of none, horizontal, vertical, all"),
        (network(), wide, {}, "32x40 px, whose shape a quarter turn would change: set quarter_turns=False"),
        (network(), pairs, {"epochs": 0}, "epochs: found 0; expected at least 1"),
        (network(), pairs, {"crop_px": 18}, "crop_px: found 18; .* divisible by 4: 20"),
    ):
        with pytest.raises(UserError, match=message):
            quick(begin, dataset, **how)


def test_single_pixels_that_norm_layers_cannot_train_on_are_refused_with_the_fix():
    with pytest.raises(UserError, match=r"batch_size: found a batch whose deepest level is a single pixel.*larger"):
        quick(network(), tuple(one[:, :4, :4] for one in circles(2)), batch_size=1)


def test_images_of_several_sizes_are_cropped_or_taken_one_by_one():
    pairs = [*zip(*circles(4, 32), strict=True), *zip(*circles(4, 40), strict=True)]
    with pytest.raises(UserError, match=r"after one of .*; expected one size in a batch: set crop_px"):
        quick(network(), pairs)
    quick(network(), pairs, crop_px=24, epochs=1)
    quick(network(), pairs, pairs, batch_size=1, epochs=1)
    grey = [(image.mean(axis=2), mask) for image, mask in pairs]  # (H, W) float64
    wide = [(np.hstack([image, image]), np.hstack([mask, mask])) for image, mask in pairs[:4]]
    quick(network(), wide, wide, quarter_turns=False, epochs=1)
    quick(network(channels=1), grey, crop_px=24, epochs=1)


def test_a_resized_model_is_fine_tuned_at_its_own_size():
    images, masks = circles(8, 64)
    for how in ("stretch", "pad"):
        begin = unetpp.Trained(network(), (32, 32), fit=how)
        tuned = quick(begin, (images[:, :48], masks[:, :48]), (images, masks), epochs=1)
        assert (tuned.size, tuned.fit) == ((32, 32), how)


def test_an_overlay_shows_each_class_in_its_colour():
    images, masks = circles(2)
    shown = unetpp.overlay(images[0], masks[0])
    assert shown.shape == (32, 32, 3)
    assert (shown[masks[0] == 0] == unetpp.overlay(images[0], masks[0] * 0)[masks[0] == 0]).all()
    assert (shown[masks[0] == 1] != unetpp.overlay(images[0], masks[0] * 2)[masks[0] == 1]).any()
    assert unetpp.overlay(images[0][..., 0] / 255, masks[0]).dtype == np.uint8
    with pytest.raises(UserError, match="overlay draws one image at a time"):
        unetpp.overlay(images, masks)


def test_fine_tuning_for_other_classes_keeps_all_but_the_heads():
    images, masks = circles()
    trained = quick(network(), (images, masks))
    begin = network(num_classes=3)
    assert unetpp.transfer(trained.network, begin) == [1, 2]
    kept = weights(trained)
    assert all(torch.equal(value, kept[key]) for key, value in begin.state_dict().items() if "heads" not in key)
    assert unetpp.transfer(trained.network, network()) == []
    quick(begin, (images, masks * 2), epochs=1)
    assert unetpp.transfer(trained.network, network(widths=(4, 6))) == []  # the first levels are a network
    with pytest.raises(UserError, match=r"widths: found \[4, 6, 8\] .* and \[4, 8\] .*with widths=\[4, 6, 8\]"):
        unetpp.transfer(trained.network, network(widths=(4, 8)))
    with pytest.raises(UserError, match=r"in_channels: found 3 .* and 1"):
        unetpp.transfer(trained.network, network(channels=1))


def test_the_epoch_that_is_kept_is_no_lucky_one_and_no_unlucky_one():
    def keep(scores: list[float]) -> int:
        return max(range(len(scores)), key=lambda at: steady(scores[: at + 1]))

    assert keep([0.5, 0.6, 0.7, 0.71, 0.72]) == 4
    assert keep([0.5, 0.5, 0.9, 0.5, 0.7, 0.72, 0.73]) == 6  # a lucky one among worse ones
    assert keep([0.1, 0.2, 0.8, 0.8, 0.5]) == 3  # an unlucky one, whose last three are the best
    assert steady([0.4]) == 0.4
