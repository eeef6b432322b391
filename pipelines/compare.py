"""Two models on the same test images: paired differences and their intervals.

An interval is over groups, not images: what belongs together (tiles of a slide, shots of a patient) is drawn
together, since its errors are alike. Both models are scored on each drawn group, so that what is hard for both
does not widen the interval of their difference.
"""

from dataclasses import dataclass

import numpy as np

from unetpp.errors import UserError

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean over the common images of candidate minus other, and its 95 % interval."""

    mean: float
    low: float
    high: float
    num_images: int
    num_groups: int


def paired_difference(candidate: dict[str, float], other: dict[str, float], groups: dict[str, str]) -> Difference:
    """The difference of two models' scores on the images that both were scored on.

    Args:
        candidate, other: score (IoU, say) by image id; higher is better.
        groups: group by image id; an image without one is a group of its own.

    Returns:
        candidate minus other: the mean over images, and percentiles of that mean over 2000 resamples of the groups
        (the same ones at every call). One group alone gives no interval but the mean itself.

    Raises:
        UserError: no image in common.
    """
    ids = sorted(candidate.keys() & other.keys())
    if not ids:
        raise UserError(
            f"found no image in common among the {len(candidate)} of the one and the {len(other)} of the other; "
            "expected models scored on the same test images: evaluate both on one prepared folder"
        )
    differences = np.array([candidate[id_] - other[id_] for id_ in ids])
    # A tuple, so that an image without a group shares none with a group that is called as it is.
    names = [("group", groups[id_]) if groups.get(id_) else ("image", id_) for id_ in ids]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    belongs = np.array([numbers[name] for name in names])
    sums, sizes = np.bincount(belongs, differences), np.bincount(belongs)
    rng, num_groups = np.random.default_rng(0), len(sizes)
    draws = (rng.integers(num_groups, size=num_groups) for _ in range(RESAMPLES))
    means = [sums[drawn].sum() / sizes[drawn].sum() for drawn in draws]
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Difference(float(differences.mean()), float(low), float(high), len(ids), num_groups)
