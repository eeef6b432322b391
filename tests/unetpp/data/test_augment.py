"""Augmentation: what a draw is a function of, and what it never does to a label or an image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetpp.data.augment import Augment
from unetpp.data.crops import Crops
from unetpp.data.scaling import scaled
from unetpp.network.masks import IGNORE

FULL = {"flips": "all", "quarter_turns": True, "brightness": 0.3, "hue": 20}


def sample(channels: int = 3, dtype=np.uint8, size=(40, 40)):
    rng = np.random.default_rng(0)
    high = 255 if dtype == np.uint8 else 65535
    image = rng.integers(0, high, (*size, channels)).astype(dtype)
    return image, rng.integers(0, 3, size).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_both_types_and_kinds_stay_in_range(channels, dtype):
    image, mask = sample(channels, dtype)
    for epoch in range(6):
        drawn, drawn_mask = Augment(Crops(32), **FULL, channels=channels)(image, mask, (0, epoch, "x"))
        assert drawn.dtype == np.float32
        assert drawn.shape == (32, 32, channels)
        assert drawn_mask.dtype == np.uint8
        whole = scaled(image)
        reach = 0.3 * np.abs(whole - whole.mean()).max() + 0.3 * whole.std(axis=(0, 1)).max()
        assert drawn.min() >= -reach
        assert drawn.max() <= 1 + reach


def test_hue_leaves_grey_grey():
    image = np.repeat(sample(1)[0], 3, axis=2)
    for epoch in range(8):
        drawn, _ = Augment(Crops(None), flips="none", quarter_turns=False, brightness=0, hue=90, channels=3)(
            image, sample()[1], (0, epoch, "x")
        )
        assert np.ptp(drawn, axis=2).max() < 1e-5


def test_dim_images_keep_their_contrast():
    """Brightness in shares of full scale would leave such images black; in shares of the mean, bright ones white."""
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 1
    augment = Augment(Crops(None), flips="none", quarter_turns=False, brightness=0.3, hue=0, channels=1)
    for low, high in ((8, 20), (230, 242)):
        image = np.where(mask[..., None] == 1, high, low).astype(np.uint8)
        std = image.std() / 255
        for epoch in range(40):
            drawn, _ = augment(image, mask, (0, epoch, "dim"))
            difference = drawn[mask == 1].mean() - drawn[mask == 0].mean()
            assert difference == pytest.approx((high - low) / 255, rel=0.3001)
            assert abs(drawn.mean() - image.mean() / 255) < 0.3001 * std


def test_steps_draw_without_regard_to_each_other():
    """The library gives all steps of a pipeline one seed: brightness and hue would change always together."""
    image, mask = sample(size=(32, 32))
    crops = Crops(24)
    both = {"brightness": 0.3, "hue": 40}
    changed = {}
    for name in both:
        augment = Augment(
            crops,
            flips="none",
            quarter_turns=False,
            **{key: both[key] if key == name else 0 for key in both},
            channels=3,
        )
        changed[name] = []
        for epoch in range(400):
            key = (0, epoch, "x")
            plain = scaled(crops(image, mask, key)[0])
            changed[name].append(not np.array_equal(augment(image, mask, key)[0], plain))
    share = np.mean(np.array(changed["brightness"]) & np.array(changed["hue"]))
    assert 0.17 < share < 0.33  # a half of a half


def test_a_dim_image_of_16_bits_keeps_its_grey_levels_when_its_hue_turns():
    image = np.stack([np.arange(1024).reshape(32, 32) + shift for shift in (0, 40, 90)], axis=-1).astype(np.uint16)
    augment = Augment(Crops(None), flips="none", quarter_turns=False, brightness=0, hue=10, channels=3)
    turned = 0
    for epoch in range(10):
        drawn, _ = augment(image, np.zeros((32, 32), np.uint8), (0, epoch, "x"))
        turned += not np.array_equal(drawn, scaled(image))
        assert len(np.unique(drawn[..., 2])) > 1000  # 8 bits hold 5 of them
    assert turned > 0


TYPES = st.sampled_from([np.uint8, np.uint16, np.float32])
MASK_TYPES = st.sampled_from([bool, np.uint8, np.uint16, np.int32, np.int64])


@settings(deadline=None, max_examples=150)
@given(
    dtype=TYPES,
    mask_dtype=MASK_TYPES,
    channels=st.sampled_from([1, 2, 3, 4, 12]),
    side=st.integers(2, 40),
    size=st.none() | st.integers(1, 50),
    strength=st.floats(0, 1),
    key=st.tuples(st.integers(0, 2**32), st.integers(0, 10**6), st.text(max_size=20)),
)
def test_labels_move_with_their_pixels_are_never_blended_and_keep_their_type(
    dtype, mask_dtype, channels, side, size, strength, key
):
    """Each pixel of the image says what its label is, before and after; images of any type and number of channels."""
    rng = np.random.default_rng(side)
    high = {np.uint8: 255, np.uint16: 65535, np.float32: 1e6}[dtype]
    labels = np.array([0, 1, 1, 0]) if mask_dtype is bool else np.array([0, 1, 7, min(2**40, np.iinfo(mask_dtype).max)])
    index = rng.integers(0, 4, (side, side))
    image = np.repeat((index / 3 * high).astype(dtype)[..., None], channels, axis=2)
    image[0, 0], image[-1, -1], index[0, 0], index[-1, -1] = 0, high, 0, 3
    mask = labels.astype(mask_dtype)[index]
    geometric = Augment(Crops(size), flips="all", quarter_turns=True, brightness=0, hue=0, channels=channels)
    drawn, drawn_mask = geometric(image, mask, key)
    assert drawn_mask.dtype == mask.dtype
    inside = geometric(image, np.zeros((side, side), np.uint8), key)[1] != IGNORE
    moved = labels.astype(mask_dtype)[np.rint(drawn[..., 0] * 3).astype(int)]
    assert np.array_equal(drawn_mask[inside], moved[inside])
    coloured, same_mask = Augment(Crops(size), "all", True, strength, int(90 * strength), channels)(image, mask, key)
    assert np.array_equal(same_mask, drawn_mask)
    assert coloured.dtype == np.float32
    assert coloured.shape == drawn.shape
    assert np.isfinite(coloured).all()
