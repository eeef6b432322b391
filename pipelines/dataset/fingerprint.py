"""The fingerprint of a dataset: the facts of all its samples added up, as plain values for JSON.

A function of samples.csv and of the tables next to it. Each sum over all samples is the sum over the splits.
"""

import re
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np

from pipelines.core.files import read_results, write_json
from pipelines.core.tables import read_rows
from pipelines.dataset.data_warnings import find_what_stands_out
from pipelines.dataset.object_sizes import add_up, share_smaller, size_quantile_px
from pipelines.dataset.sample_stats import Samples, read_samples, rounded
from pipelines.dataset.split_balance import measure_balance
from pipelines.dataset.splits import SPLITS
from unetpp.data.manifest import Manifest, read_manifest
from unetpp.images.frame import plain

SHOWN = 8  # rows of a table; the rarer values share one row
LISTED = 10  # ids named as examples
MAX_DEPTH = 6
STEPS = 20
PREPARED = ("size", "fit", "channels", "num_classes", "multilabel", "background")
NEARLY_ALL = 0.9  # share of foreground above which a mask may be inverted


def summarise(samples: Samples, manifest: Manifest, duplicates: list[dict], quarantined: list[dict]) -> dict:
    """The fingerprint.

    Args:
        samples: as `sample_stats.read_samples` returns them.
        manifest: of the prepared data.
        duplicates: rows of duplicates.csv (id, other, distance, correlation).
        quarantined: rows of quarantine.csv (id, file, reason, fix).
    """
    within = {split: samples["split"] == split for split in SPLITS}
    within["all"] = np.ones(len(samples["id"]), bool)
    return {
        "prepared": {key: getattr(manifest, key) for key in PREPARED} | {"size": plain(manifest.size)},
        "splits": {name: _sums(samples, where) for name, where in within.items()},
        "counts": _counts(samples, within),
        "images": _images(samples),
        "intensity": _intensity(samples),
        "objects": _objects(samples),
        "classes": _classes(samples, within, manifest),
        "masks": _masks(samples, manifest.background),
        "balance": measure_balance(samples, within),
        "duplicates": _duplicates(samples, duplicates),
        "sequences": manifest.sequences,
        "given_split": manifest.given_split,
        "leaks": manifest.leaks,
        "quarantine": _quarantine(quarantined),
    }


def _sums(samples: Samples, where: np.ndarray) -> dict:
    pixels = int((samples["height"] * samples["width"])[where].sum())
    foreground, ignored = (int(samples[name][where].sum()) for name in ("foreground_px", "ignored_px"))
    return {
        "num_images": int(where.sum()),
        "pixels": pixels,
        "foreground_px": foreground,
        "foreground_share": rounded(foreground / max(1, pixels - ignored)),  # of the labelled pixels
        "ignored_share": rounded(ignored / max(1, pixels)),
        "empty_masks": int((samples["foreground_px"][where] == 0).sum()),
        "num_objects": int(samples["num_objects"][where].sum()),
    }


def _counts(samples: Samples, within: dict[str, np.ndarray]) -> dict[str, list[dict]]:
    """Number of images by kind, if they have one, size, and file format; the most frequent first."""
    numbers = {name: samples[name].astype(int).astype(str) for name in ("width", "height", "bits")}
    files = [f"{form} {mode}" for form, mode in zip(samples["format"], samples["mode"], strict=True)]
    values = {
        "Kind": samples["kind"],
        "Size, px": np.array([f"{w} x {h}" for w, h in zip(numbers["width"], numbers["height"], strict=True)], object),
        "File": np.array(files, object),
        "Bits a channel": numbers["bits"].astype(object),
    }
    return {what: _count_by_split(column, within) for what, column in values.items() if column.any()}


def _count_by_split(column: np.ndarray, within: dict[str, np.ndarray]) -> list[dict]:
    totals = Counter(column)
    order = sorted(totals, key=lambda value: (-totals[value], value))
    by_split = {name: Counter(column[where]) for name, where in within.items()}
    rows = [{"value": value} | {name: counts[value] for name, counts in by_split.items()} for value in order[:SHOWN]]
    if rest := order[SHOWN:]:
        others = {name: sum(counts[value] for value in rest) for name, counts in by_split.items()}
        rows.append({"value": f"{len(rest)} other{'s' * (len(rest) > 1)}"} | others)
    return rows


def _images(samples: Samples) -> dict:
    height, width = samples["height"], samples["width"]
    sides, aspects = np.sqrt(height * width), np.maximum(height, width) / np.minimum(height, width)
    return {
        "num_sizes": len(np.unique(np.stack([height, width]), axis=1).T),
        "side_px": _spread(sides),  # of a square with the same area
        "height_px": _spread(height),
        "width_px": _spread(width),
        "shape": _spread(height / width),
        "channels": int(max(samples["channels"], default=3)),
        "shorter_px": _spread(np.minimum(height, width)),
        "aspect": _spread(aspects),
        "grey": int(samples["grey"].sum()),
        "blank": _named(samples, samples["low"] == samples["high"]),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    quantiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)) if len(values) else np.zeros(5)
    return dict(zip(("min", "q25", "median", "q75", "max"), map(rounded, quantiles), strict=True))


def _named(samples: Samples, where: np.ndarray) -> dict:
    """How many samples, and the ids of the first few."""
    return {"num": int(where.sum()), "ids": sorted(samples["id"][where])[:LISTED]}


def _intensity(samples: Samples) -> list[dict]:
    """By kind and bits: medians over the images of low, percentiles and high."""
    rows = []
    keys = sorted(set(zip(samples["kind"], samples["bits"], strict=True)))
    for kind, bits in keys:
        where = (samples["kind"] == kind) & (samples["bits"] == bits)
        medians = {name: rounded(np.median(samples[name][where])) for name in ("low", "p1", "median", "p99", "high")}
        full = 2**bits - 1
        rows.append(
            {
                "kind": kind,
                "bits": int(bits),
                "num_images": int(where.sum()),
                **medians,
                "lowest": rounded(samples["low"][where].min()),
                "highest": rounded(samples["high"][where].max()),
                "saturated": int((samples["p99"][where] >= full).sum()) if bits <= 16 else 0,
            }
        )
    return rows


def _objects(samples: Samples) -> dict:
    """Sizes are pooled over all objects, at the size of the files ("stored") and of the network's input."""
    result: dict = {
        # A single object counts as one in any way.
        "counted_by": dict(sorted(Counter(samples["objects_by"][samples["num_objects"] > 1]).items())),
        "per_image": _spread(samples["num_objects"]),
        # Of the classes, the median over images that have any; a dataset of semantic classes has no real objects.
        "width_px": rounded(np.median(wide)) if len(wide := samples["width_px"][samples["width_px"] > 0]) else 0.0,
        "shrunk": rounded(np.median(samples["scale"])) if len(samples["scale"]) else 1.0,
    }
    for name, column in (("stored", "sizes"), ("prepared", "prepared_sizes")):
        sizes = add_up(samples[column])
        result[name] = _size_facts(sizes) | {"sizes": {str(bin): count for bin, count in sizes.items()}}
    result["kinds"] = [
        {"kind": kind} | _size_facts(add_up(samples["prepared_sizes"][samples["kind"] == kind]))
        for kind in sorted(set(samples["kind"]) - {""})
    ]
    sizes = add_up(samples["prepared_sizes"])
    result["depths"] = [
        {"depth": depth, "cell_px": 2**depth, "smaller": rounded(share_smaller(sizes, depth))}
        for depth in range(1, MAX_DEPTH + 1)
    ]
    return result


def _size_facts(sizes: dict[int, int]) -> dict:
    quantiles = {f"p{share}": rounded(size_quantile_px(sizes, share / 100)) for share in (10, 50, 90)}
    return {"num_objects": sum(sizes.values())} | quantiles


def _names(manifest: Manifest) -> list[str]:
    """The names of the background and the classes or labels on pages, in the order of their numbers from 0."""
    last = manifest.num_classes if manifest.multilabel else max(2, manifest.num_classes) - 1
    names = manifest.classes or [str(number) for number in range(int(manifest.background), last + 1)]
    return ["no label" if manifest.multilabel else "background"] * manifest.background + names


def _classes(samples: Samples, within: dict[str, np.ndarray], manifest: Manifest) -> list[dict]:
    """Pixels of each class, the images that have it, and the weight that would balance all classes.

    Shares are of the labelled pixels. Labels may overlap, so their shares add up to more than 1, and have no weight.
    """
    names, first = _names(manifest), int(manifest.background)
    pixels = {name: add_up(samples["classes"][where]) for name, where in within.items()}
    images = Counter(value for cell in samples["classes"] for value in add_up([cell]))
    known = samples["height"] * samples["width"] - samples["ignored_px"]
    total = int(known.sum())
    if manifest.background:
        pixels["all"][0] = total - int(samples["foreground_px"].sum())
        images[0] = int((samples["foreground_px"] < known).sum())
    num_present = sum(count > 0 for count in pixels["all"].values())
    rows = []
    for value, called in enumerate(names):
        count = pixels["all"].get(value, 0)
        share = count / max(1, total)
        rows.append(
            {
                "class": value,
                "name": called,
                "num_images": images[value],
                "pixels": count,
                "share": rounded(share),
                "missing_in": [name for name in SPLITS if value >= first and not pixels[name].get(value)],
                "weight": rounded(1 / (num_present * share)) if count and not manifest.multilabel else None,
            }
        )
    return rows


def _masks(samples: Samples, background: bool) -> dict:
    """Shares of foreground as counts in twenty equal steps from 0 to 1, and masks to check."""
    foreground = samples["foreground_px"]
    return {
        "shares": np.histogram(samples["foreground_share"], STEPS, (0, 1))[0].tolist(),
        "empty": _named(samples, foreground == 0),
        "lost": _named(samples, (foreground > 0) & (samples["prepared_foreground_px"] == 0)),
        "nearly_full": _named(samples, background & (samples["foreground_share"] > NEARLY_ALL)),
        "ignored": int((samples["ignored_px"] > 0).sum()),
        "shaded": int((samples["shades_px"] > 0).sum()),
        "shades_share": rounded(samples["shades_px"].sum() / max(1, foreground.sum())),  # of the foreground
        "overlapping": int((samples["overlap_px"] > 0).sum()),
        "overlap_share": rounded(samples["overlap_px"].sum() / max(1, foreground.sum())),  # of the foreground
    }


def _duplicates(samples: Samples, rows: list[dict]) -> dict:
    """The pairs, the most alike first; `across` counts those with images in different splits."""
    split_of = dict(zip(samples["id"], samples["split"], strict=True))
    pairs = [
        {"id": row["id"], "other": row["other"], "distance": int(row["distance"])}
        | {"correlation": float(row["correlation"]), "split": split_of.get(row["id"], "")}
        for row in rows
    ]
    pairs.sort(key=lambda pair: (-pair["correlation"], pair["distance"], pair["id"], pair["other"]))
    across = sum(split_of.get(row["id"]) != split_of.get(row["other"]) for row in rows)
    num_images = len({id for row in rows for id in (row["id"], row["other"])})
    return {"num_pairs": len(rows), "num_images": num_images, "across": across, "pairs": pairs[:SHOWN]}


def _quarantine(rows: list[dict]) -> dict:
    """Files set aside by reason, without names and numbers, with the first of each in full."""

    def reason_of(row: dict) -> str:
        plain = row["reason"].replace(f"/{row['id']}.", "/….").replace(f" {row['id']}/", " …/")
        plain = re.sub(r"b?'[^']*'|b?\"[^\"]*\"", "…", plain)  # the first bytes of a file
        return re.sub(r"\d+", "#", re.split(r"[(:;]", plain)[0]).strip()

    ordered = sorted(rows, key=lambda row: (reason_of(row), row["file"]))
    reasons = []
    for reason, group in groupby(ordered, reason_of):
        same = list(group)
        example = ": ".join(filter(None, (same[0]["reason"], same[0].get("fix"))))
        files = [row["file"] for row in same[:LISTED]]
        reasons.append({"reason": reason, "num_files": len(same), "example": example, "files": files})
    reasons.sort(key=lambda one: (-one["num_files"], one["reason"]))
    return {"num_files": len(rows), "num_samples": len({row["id"] for row in rows}), "reasons": reasons[: 2 * SHOWN]}


def write_fingerprint(prepared: Path, advise: Callable[[dict], dict]) -> None:
    """Write fingerprint.json, with its advice, next to the tables of a prepared folder from which it is made."""
    fingerprint = summarise(
        read_samples(prepared / "samples.csv"),
        read_manifest(prepared),
        read_rows(prepared / "duplicates.csv"),
        read_rows(prepared / "quarantine.csv"),
    )
    fingerprint["advice"] = advise(fingerprint)
    fingerprint["findings"] = find_what_stands_out(fingerprint)
    write_json(prepared / "fingerprint.json", fingerprint)


def read_fingerprint(prepared: Path) -> dict:
    """fingerprint.json of a prepared folder."""
    return read_results(prepared / "fingerprint.json", "prepare")


def comparable(fingerprint: dict) -> dict:
    """The few numbers to compare between runs."""
    splits, objects = fingerprint["splits"], fingerprint["objects"]["prepared"]
    return {
        "num_images": {name: row["num_images"] for name, row in splits.items()},
        "foreground_share": round(splits["all"]["foreground_share"], 4),
        "ignored_share": round(splits["all"]["ignored_share"], 4),
        "empty_masks": splits["all"]["empty_masks"],
        "objects": objects["num_objects"],
        "object_px": {share: round(objects[share], 2) for share in ("p10", "p50", "p90")},
        "suggested_depth": fingerprint["advice"]["depth"],
        "near_duplicates": fingerprint["duplicates"]["num_pairs"],
        "quarantined_files": fingerprint["quarantine"]["num_files"],
        "warnings": len(fingerprint["findings"]["warnings"]),
    }
