"""The objects that a model separates, measured in an image that is held as a whole."""

import numpy as np

from pipelines.prediction.objects import Measured
from unetpp.inference.instances import separate
from unetpp.models.about import About


def find_parted(mask: np.ndarray, probs: np.ndarray, about: About) -> tuple[np.ndarray, list[Measured]]:
    """Separate and measure the objects of a mask.

    Args:
        mask: (H, W) class indices.
        probs: (num_outputs, H, W) probabilities of the same image.

    Returns:
        the object numbers (H, W) int32, 0 where there is none, and the measurements, in the order of the numbers.

    Raises:
        UserError: scikit-image is not installed.
    """
    separation = about.separation()
    assert separation is not None
    numbers = separate(probs, about.num_classes, separation, background=about.background)
    rows, columns = np.nonzero(numbers)  # in reading order
    which = numbers[rows, columns] - 1  # (n,) the object of each pixel
    areas = np.bincount(which)
    first = np.unique(which, return_index=True)[1]
    x, y = (np.bincount(which, places) / areas for places in (columns, rows))
    low, high = np.full((2, len(areas)), max(mask.shape)), np.zeros((2, len(areas)), int)
    for axis, places in enumerate((columns, rows)):
        np.minimum.at(low[axis], which, places)
        np.maximum.at(high[axis], which, places)
    boxes = np.concatenate([low, high - low + 1]).T.tolist()  # left, top, width, height
    classes = [about.names[value] for value in mask[rows[first], columns[first]]]
    return numbers, [
        Measured(index + 1, classes[index], int(area), round(float(x[index]), 2), round(float(y[index]), 2), *box)
        for index, (area, box) in enumerate(zip(areas, boxes, strict=True))
    ]
