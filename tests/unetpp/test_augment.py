import numpy as np
import pytest

from unetpp.augment import Augment

FULL = {"flips": True, "brightness": 0.3, "hue": 20}


def sample(channels: int = 3, dtype=np.uint8, size=(40, 40)):
    rng = np.random.default_rng(0)
    high = 255 if dtype == np.uint8 else 65535
    image = rng.integers(0, high, (*size, channels)).astype(dtype)
    return image, rng.integers(0, 3, size).astype(np.uint8)


def test_draw_is_a_function_of_its_key_alone():
    first, second = Augment(None, **FULL, channels=3), Augment(None, **FULL, channels=3)
    image, mask = sample()
    for epoch in range(4):
        second(image, mask, (0, 99, "another draw in between"))
        a, b = first(image, mask, (0, epoch, "x")), second(image, mask, (0, epoch, "x"))
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[1], b[1])


def test_draws_differ_by_seed_epoch_and_sample():
    augment = Augment(None, **FULL, channels=3)
    image, mask = sample()
    keys = [(seed, epoch, name) for seed in range(2) for epoch in range(3) for name in ("a", "b", "c")]
    assert len({augment(image, mask, key)[0].tobytes() for key in keys}) > len(keys) // 2


@pytest.mark.parametrize("crop_px", [None, 24, 64])
def test_image_and_mask_move_together(crop_px):
    augment = Augment(crop_px, flips=True, brightness=0, hue=0, channels=1)
    mask = np.zeros((40, 48), np.uint8)
    mask[5:15, 8:30] = 1
    mask[20:33, 10:18] = 2
    image = (mask * 100)[..., None]
    if crop_px is None:
        mask, image = mask[:, :40], image[:, :40]
    for epoch in range(12):
        moved, moved_mask = augment(image, mask, (0, epoch, "x"))
        inside = moved_mask > 0 if crop_px == 64 else np.ones(moved_mask.shape, bool)  # padding mirrors images alone
        assert np.allclose(moved[..., 0][inside], moved_mask[inside] * np.float32(100 / 255), atol=1e-6)
        assert set(np.unique(moved_mask)) <= {0, 1, 2}
        if crop_px:
            assert moved_mask.shape == (crop_px, crop_px)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_both_types_and_kinds_stay_in_range(channels, dtype):
    image, mask = sample(channels, dtype)
    for epoch in range(6):
        drawn, drawn_mask = Augment(32, **FULL, channels=channels)(image, mask, (0, epoch, "x"))
        assert drawn.dtype == np.float32
        assert drawn.shape == (32, 32, channels)
        assert drawn_mask.dtype == np.uint8
        assert drawn.min() >= 0
        assert drawn.max() <= 1


def test_hue_leaves_grey_grey():
    image = np.repeat(sample(1)[0], 3, axis=2)
    for epoch in range(8):
        drawn, _ = Augment(None, flips=False, brightness=0, hue=90, channels=3)(image, sample()[1], (0, epoch, "x"))
        assert np.ptp(drawn, axis=2).max() < 1e-5


def test_dim_images_keep_their_contrast():
    """Brightness in shares of full scale would leave a quarter of such images black."""
    image, mask = np.full((32, 32, 1), 8, np.uint8), np.zeros((32, 32), np.uint8)
    image[8:24, 8:24], mask[8:24, 8:24] = 20, 1
    augment = Augment(None, flips=False, brightness=0.3, hue=0, channels=1)
    for epoch in range(40):
        drawn, _ = augment(image, mask, (0, epoch, "dim"))
        assert drawn[mask == 1].mean() - drawn[mask == 0].mean() > 0.5 * (20 - 8) / 255
