"""How much a number might change with another test set: bootstrap intervals over groups, paired between depths.

Images of one group (a patient, a slide, near-duplicates) repeat the same information, and pixels of one image even more
so. Therefore groups are drawn, with replacement, as many as there are; the mean of a resample is over all images of the
drawn groups (Davison and Hinkley 1997, section 3.8).
"""

from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
AT_ONCE = 2**22  # draws held in memory


def bootstrap(values: Mapping[str, np.ndarray], groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Means over resamples of the groups, the same ones for every name and call: differences are paired.

    Args:
        values: (N,) scores of the images by name; nan is ignored.
        groups: the group of each image.

    Returns:
        (RESAMPLES,) means by name; nan for a resample without any score.
    """
    table = np.stack(list(values.values()), axis=1)  # (N, names)
    _, group = np.unique(list(groups), return_inverse=True)
    num_groups = int(group.max()) + 1
    known = ~np.isnan(table)
    sums, sizes = np.zeros((2, num_groups, table.shape[1]))
    np.add.at(sums, group, np.where(known, table, 0))
    np.add.at(sizes, group, known)
    rng = np.random.default_rng(0)
    step = max(1, AT_ONCE // num_groups)
    means = []
    for start in range(0, RESAMPLES, step):
        drawn = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=min(step, RESAMPLES - start))
        with np.errstate(invalid="ignore"):
            means.append((drawn @ sums) / (drawn @ sizes))
    return dict(zip(values, np.concatenate(means).T, strict=True))


def interval(means: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled means (or of their differences); nan if there are none."""
    tail, known = 50 * (1 - LEVEL), means[~np.isnan(means)]
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)
