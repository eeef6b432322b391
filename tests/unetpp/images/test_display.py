"""Laws of the colours of classes and errors."""

import numpy as np
import pytest

from unetpp.images import display

# From linear sRGB: to Oklab (Ottosson 2020), and to what is seen without red or green cones (Viénot 1999).
TO_LMS = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
TO_LAB = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
SEEN = {
    "fully": np.eye(3),
    "without red": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "without green": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


def lab(colours, seen) -> np.ndarray:
    """(N, 3) in Oklab, in hundredths."""
    levels = np.array([colour[:3] for colour in colours]) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    seen_as = (linear @ np.transpose(SEEN[seen])).clip(0, 1)
    return 100 * np.cbrt(seen_as @ np.transpose(TO_LMS)) @ np.transpose(TO_LAB)


def nearest(ours, others, seen="fully") -> float:
    """The least distance between two of these colours, of which 2 can just be seen side by side."""
    apart = np.linalg.norm(lab(ours, seen)[:, None] - lab(others, seen)[None], axis=-1)
    return float((apart + np.eye(len(ours)) * 99 if ours == others else apart).min())


def test_classes_have_colours_that_do_not_repeat_and_are_none_of_errors():
    colours = [display.class_colour(number) for number in range(255)]
    errors = [colour for name, colour in display.ERRORS.items() if name != "right"]
    assert len(set(colours)) == 255
    assert nearest(colours[:24], colours[:24]) > 10
    assert nearest(colours[:24], errors) > 10
    assert nearest(colours, colours) > 3
    assert nearest(colours, errors) > 3
    for seen in ("without red", "without green"):
        assert nearest(colours[:12], colours[:12], seen) > 7
        assert nearest(colours[:24], colours[:24], seen) > 5
        assert nearest(colours[:24], errors, seen) > 5


def test_a_filled_class_is_its_colour_laid_over_the_image_and_the_rest_is_as_it_was():
    base = np.full((4, 4, 3), 100, np.uint8)
    inside = np.zeros((4, 4), bool)
    inside[1:3] = True
    filled = display.fill_classes(base, [(3, inside)])
    assert (filled[~inside] == 100).all()
    assert filled[1, 1].tolist() == [round(100 + display.FILL * (one - 100)) for one in display.class_colour(3)]


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("channels", [1, 5])
def test_the_middle_of_parts_is_that_of_the_whole(dtype, channels):
    image = np.random.default_rng(0).normal(100, 40 if dtype == "u1" else 900, (57, 31, channels))
    image = (image if dtype == "f4" else image.clip(0, 255 if dtype == "u1" else 65535)).astype(dtype)
    parts = [image[:1], image[1:30], image[30:]]
    found = display.find_middle(lambda: parts)
    assert found == display.find_middle(lambda: [image])
    seen = image[..., :3] if channels > 1 else image
    np.testing.assert_allclose(found, np.percentile(seen.astype(np.float64), [0.5, 99.5]), rtol=1e-12)
    assert display.find_middle(lambda: [np.full((4, 4, 3), -7.5, np.float32)]) == (-7.5, -7.5)
