"""How alike the splits are: means of each beside the whole, in standard errors of drawing by chance."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from pipelines.dataset.sample_stats import Samples, rounded
from pipelines.dataset.splits import SPLITS

MOST_KINDS = 8


def measure_balance(samples: Samples, within: dict[str, np.ndarray]) -> list[dict]:
    """What each split has beside the whole, and how far that is from it in standard errors of drawing by chance.

    A split is taken for a sample without replacement: the standard error of a mean of n out of N is
    s / sqrt(n) * sqrt((N - n) / (N - 1)), with s the standard deviation of the whole.
    """
    some = samples["num_objects"] > 0
    every = np.ones(len(some), bool)
    sides = np.sqrt(samples["height"] * samples["width"])
    measures: list[tuple[str, np.ndarray, np.ndarray, Callable]] = [
        (f"share of {kind}", (samples["kind"] == kind).astype(float), every, float)
        for kind, _ in Counter(samples["kind"]).most_common(MOST_KINDS)
    ]
    measures += [
        ("foreground share of an image", samples["foreground_share"], every, float),
        ("objects in an image", samples["num_objects"], every, float),
        ("median object, px", np.log(np.where(some, samples["object_px_median"] * samples["scale"], 1)), some, np.exp),
        ("side of an image, px", np.log(sides), every, np.exp),
    ]
    rows = []
    for name, values, counted, shown in measures:
        if not counted.any() or np.ptp(values[counted]) == 0:
            continue  # nothing that could differ
        mean, deviation, total = values[counted].mean(), values[counted].std(), counted.sum()
        row: dict = {"measure": name, "all": rounded(shown(mean)), "splits": {}}
        for split in SPLITS:
            own = values[within[split] & counted]
            if not len(own):
                row["splits"][split] = {"value": None, "errors": None}
                continue
            error = deviation / np.sqrt(len(own)) * np.sqrt((total - len(own)) / max(1, total - 1))
            off = (own.mean() - mean) / error if error else 0.0
            row["splits"][split] = {"value": rounded(shown(own.mean())), "errors": round(float(off), 2)}
        rows.append(row)
    return rows
