"""Laws of objects: strips of any height have the objects of the whole, in scipy's order."""

import numpy as np
import pytest
from scipy import ndimage

from pipelines.prediction.objects import ObjectFinder
from unetpp.models.about import About


def by_strips(mask, about, height):
    finder = ObjectFinder(about)
    tops = range(0, len(mask), height)
    for top in tops:
        finder.add(mask[top : top + height], top)
    finder.close()
    planes = [finder.number(mask[top : top + height], top) for top in tops]
    return [np.concatenate(one) for one in zip(*planes, strict=True)], list(finder.objects())


@pytest.mark.parametrize(
    ("config", "values"),
    [({"num_classes": 1}, 2), ({"num_classes": 4}, 4), ({"num_classes": 2, "multilabel": True}, 4)],
)
@pytest.mark.parametrize("height", [1, 3, 50])
def test_strips_have_the_objects_of_the_whole(config, values, height):
    about = About({"widths": [1, 1]} | config, None)
    noise = np.random.default_rng(0).integers(0, values, (20, 23)).astype(np.uint8)
    mask = noise.repeat(2, axis=0).repeat(2, axis=1) if values > 2 else noise * (np.arange(23) % 3 > 0).astype(np.uint8)
    mask[9:15] = 0  # rows without any
    whole, objects = by_strips(mask, about, 1000)
    planes, found = by_strips(mask, about, height)
    assert all(np.array_equal(one, other) for one, other in zip(planes, whole, strict=True))
    assert found == objects
    assert len(objects) > 5
    place = mask & 1 == 1 if about.multilabel else mask == 1
    numbers = ndimage.label(place, np.ones((3, 3)))[0]  # pyright: ignore[reportIndexIssue] - the stub's int
    count = int(numbers.max())
    assert np.array_equal(planes[0][place], numbers[place])
    first = [one for one in objects if one.cls == about.classes[0]]
    assert [one.area_px for one in first] == np.bincount(numbers.ravel())[1:].tolist()
    assert [(one.centroid_y, one.centroid_x) for one in first] == [
        tuple(round(float(at), 2) for at in centre)
        for centre in ndimage.center_of_mass(place, numbers, range(1, count + 1))
    ]
    boxes = [(one.top, one.left, one.height, one.width) for one in first]
    assert boxes == [
        (down.start, across.start, down.stop - down.start, across.stop - across.start)
        for down, across in ndimage.find_objects(numbers)
    ]
