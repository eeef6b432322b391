"""Facts of samples that were never images, for laws of the fingerprint and for sets of any size."""

import numpy as np

from pipelines.dataset.data_warnings import find_what_stands_out
from pipelines.dataset.fingerprint import SPLITS, summarise
from pipelines.dataset.object_sizes import count_sizes, diameters_px, join
from pipelines.dataset.sample_stats import Samples
from pipelines.planning.advice import advise
from unetpp.data.manifest import Manifest

KINDS = ("fluorescence", "tissue", "bright-field")


def make_samples(
    num: int,
    seed: int = 0,
    size: int | None = 96,
    sides: tuple[tuple[int, int], ...] = ((256, 256), (520, 696), (1024, 1024)),
    typical_px: float = 20,
    num_classes: int = 1,
    grey: bool = False,
) -> Samples:
    """What `sample_stats.read_samples` would return of `num` images with objects of about `typical_px`."""
    rng = np.random.default_rng(seed)
    rows: list[dict] = []
    for number in range(num):
        height, width = sides[rng.integers(len(sides))]
        areas = np.rint((typical_px * np.exp(rng.normal(0, 0.4, rng.poisson(12)))) ** 2 * np.pi / 4).clip(1)
        areas = areas[np.cumsum(areas) < 0.9 * height * width].astype(int)
        diameters, scale = diameters_px(areas), 1.0 if size is None else float(np.sqrt(size * size / (height * width)))
        classes = rng.integers(1, max(2, num_classes), len(areas))
        pixels = {int(value): int(areas[classes == value].sum()) for value in np.unique(classes)}
        levels = np.sort(rng.integers(0, 256, 5)).tolist()
        rows.append(
            {
                "id": f"sample_{number:06}",
                "split": SPLITS[rng.choice(3, p=(0.7, 0.1, 0.2))],
                "kind": KINDS[rng.integers(3)],
                "format": "PNG",
                "mode": ("L", "RGB")[rng.integers(2)],
                "bits": 8,
                "channels": 1,
                "grey": 1 if grey else int(rng.integers(2)),
                "height": height,
                "width": width,
                **dict(zip(("low", "p1", "median", "p99", "high"), levels, strict=True)),
                "foreground_px": int(areas.sum()),
                "foreground_share": areas.sum() / (height * width),
                "prepared_foreground_px": int(areas.sum() * scale**2),
                "ignored_px": 0,
                "overlap_px": 0,
                "shades_px": 0,
                "classes": join(pixels),
                "num_objects": len(areas),
                "objects_by": "values",
                "object_px_min": diameters.min(initial=1000) if len(areas) else 0,
                "object_px_median": np.median(diameters) if len(areas) else 0,
                "object_px_max": diameters.max(initial=0),
                "width_px": float(np.average(diameters, weights=areas)) if len(areas) else 0.0,
                "scale": scale,
                "sizes": join(count_sizes(diameters)),
                "prepared_sizes": join(count_sizes(diameters * scale)),
            }
        )
    return {
        name: np.array([row[name] for row in rows], dtype=object if isinstance(value, str) else np.float64)
        for name, value in rows[0].items()
    }


def make_fingerprint(
    samples: Samples,
    size: int | None = 96,
    num_classes: int = 1,
    duplicates: list[dict] | None = None,
    quarantined: list[dict] | None = None,
) -> dict:
    """The whole fingerprint of samples, with advice and findings."""
    manifest = Manifest(size=size, channels=3, num_classes=num_classes, splits={})
    fingerprint = summarise(samples, manifest, duplicates or [], quarantined or [])
    fingerprint["advice"] = advise(fingerprint)
    fingerprint["findings"] = find_what_stands_out(fingerprint)
    return fingerprint
