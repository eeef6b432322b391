"""The data report: the fingerprint of the prepared images as one page, to look at before training."""

import hashlib
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup

from pipelines.dataset.object_sizes import BINS_PER_OCTAVE
from pipelines.pages.html_page import ACCENT, INK, chart, data_uri, outline_path, render
from pipelines.pages.viewer import mask_layers
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import read_manifest
from unetpp.images.display import ERRORS, class_colour, display
from unetpp.network.masks import IGNORE, find_classes

THUMBNAIL_PX = 160
PER_CELL = 2  # pictures of each kind in each split
MOST_KINDS = 4
PATH_BYTES = 24_000  # of the outlines of a picture; if they need more, its mask is shown filled


def build_page(fingerprint: dict, prepared: Path) -> str:
    """The page of a prepared folder, self-contained; its size does not grow with the number of images."""
    manifest = read_manifest(prepared)
    splits = {name: Split(prepared / f"{name}.arrow") for name in manifest.splits}
    pairs = fingerprint["duplicates"]["pairs"]
    wanted = {id for pair in pairs for id in (pair["id"], pair["other"])}
    places = {id: (split, index) for split in splits.values() for index, id in enumerate(split.ids) if id in wanted}
    meaning = manifest.multilabel, manifest.background
    provenance = {f"{name}.arrow, sha256": manifest.splits[name].sha256 for name in splits}
    return render(
        "data.html.j2",
        facts=fingerprint,
        advice=fingerprint["advice"],
        findings=fingerprint["findings"],
        per_cell=PER_CELL,
        names=list(splits),
        sizes_chart=_sizes_chart(fingerprint),
        foreground_chart=_foreground_chart(fingerprint),
        intensity_chart=_intensity_chart(fingerprint),
        overlays=_overlays(splits, meaning),
        legend=_legend([row["name"] for row in fingerprint["classes"]], manifest.background),
        filled=len(fingerprint["classes"]) - manifest.background > 1,
        pairs=[
            pair | {"pictures": [_picture(id, *places[id], None) for id in (pair["id"], pair["other"])]}
            for pair in pairs
            if pair["id"] in places and pair["other"] in places
        ],
        provenance={"Raw data manifest, sha256": manifest.raw_sha256, **provenance},
    )


def _sizes_chart(fingerprint: dict) -> Markup:
    """Objects by size: bars of half an octave as the network sees them, a line for the sizes in the files."""
    objects, depth = fingerprint["objects"], fingerprint["advice"]["depth"]
    half = BINS_PER_OCTAVE // 2
    with chart("sizes-caption") as made:
        axes = made.axes
        edges: set[float] = set()
        for name in ("prepared", "stored"):
            bins: dict[int, int] = {}
            for bin, count in objects[name]["sizes"].items():
                bins[int(bin) // half] = bins.get(int(bin) // half, 0) + count
            if not bins or (name == "stored" and abs(objects["shrunk"] - 1) < 0.01):
                continue
            span = np.arange(min(bins), max(bins) + 1)
            counts = [bins.get(int(bin), 0) for bin in span]
            lefts = 2.0 ** (span / 2)
            edges |= {float(lefts[0]), float(lefts[-1] * 2**0.5)}
            if name == "prepared":
                axes.bar(lefts, counts, lefts * (2**0.5 - 1), align="edge", color=ACCENT, edgecolor="none", alpha=0.85)
            else:
                ends = [lefts[0], *lefts, lefts[-1] * 2**0.5, lefts[-1] * 2**0.5]
                axes.plot(ends, [0, *counts, counts[-1], 0], drawstyle="steps-post", color=INK, linewidth=1.2)
        if depth:
            edges.add(2.0**depth)
            axes.axvline(2**depth, color=INK, linewidth=1.2, linestyle=(0, (5, 4)))
            axes.annotate(
                f"depth {depth}",
                (2**depth, 1),
                xycoords=("data", "axes fraction"),
                xytext=(4, -10),
                textcoords="offset points",
                size=9,
            )
        low, high = (min(edges), max(edges)) if edges else (1, 64)
        axes.set_xscale("log", base=2)
        axes.set_xlim(low / 2**0.25, high * 2**0.25)
        ticks = [2**power for power in range(12) if low / 1.2 <= 2**power <= high * 1.2]
        axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("diameter of the disc of the same area, px")
        axes.set_ylabel("objects")
    return made.svg


def _foreground_chart(fingerprint: dict) -> Markup:
    """Images by their share of foreground."""
    counts = fingerprint["masks"]["shares"]
    with chart("foreground-caption", (5.4, 2.6)) as made:
        step = 100 / len(counts)
        lefts = np.arange(len(counts)) * step
        made.axes.bar(lefts, counts, step, align="edge", color=ACCENT, edgecolor="none", alpha=0.85)
        made.axes.set_xlim(0, 100)
        made.axes.set_xlabel("foreground, % of the image")
        made.axes.set_ylabel("images")
    return made.svg


def _intensity_chart(fingerprint: dict) -> Markup:
    """By kind, if images have one, and bits: low to high (thin), the middle 98 % (thick), the median (dot)."""
    rows = [row for row in fingerprint["intensity"] if row["bits"] <= 16][:8]
    with chart("intensity-caption", (5.4, 1.1 + 0.45 * max(1, len(rows)))) as made:
        axes = made.axes
        for y, row in enumerate(reversed(rows)):
            full = (2 ** row["bits"] - 1) / 100
            axes.plot([row["low"] / full, row["high"] / full], [y, y], color=INK, linewidth=1)
            axes.plot([row["p1"] / full, row["p99"] / full], [y, y], color=ACCENT, linewidth=6, solid_capstyle="butt")
            axes.plot(row["median"] / full, y, "o", color=INK, markersize=5)
        labels = [f"{row['kind']}, {row['bits']} bits".removeprefix(", ") for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), labels=labels, parse_math=False)
        axes.set_ylim(-0.6, max(1, len(rows)) - 0.4)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("% of full scale")
    return made.svg


def _legend(names: list[str], background: bool) -> list[tuple[str, tuple[int, int, int]]]:
    """The classes by number and the colours of each; none for a single class without a name."""
    classes = names[int(background) :]
    named = [(name, class_colour(number)) for number, name in enumerate(classes, int(background))]
    return [] if classes == ["1"] else named


def _overlays(splits: dict[str, Split], meaning: tuple[bool, bool]) -> list[dict]:
    """Some pictures of each kind in each split: those with the smallest hashed ids, so only the data decide."""
    totals: dict[str, int] = {}
    for kind in chain.from_iterable(split.kinds for split in splits.values()):
        totals[kind] = totals.get(kind, 0) + 1
    shown = []
    for kind in sorted(totals, key=lambda kind: (-totals[kind], kind))[:MOST_KINDS]:
        pictures = []
        for name, split in splits.items():
            indices = [index for index, other in enumerate(split.kinds) if other == kind]
            hashed = sorted(indices, key=lambda index: hashlib.sha256(split.ids[index].encode()).digest())
            pictures += [
                _picture(split.ids[index], split, index, meaning) | {"split": name} for index in hashed[:PER_CELL]
            ]
        shown.append({"kind": kind, "num_images": totals[kind], "pictures": pictures})
    return shown


def _picture(id: str, split: Split, index: int, meaning: tuple[bool, bool] | None) -> dict:
    """A sample as the template needs it: a small picture, outlines of its classes as paths over it, and both filled.

    Args:
        meaning: multilabel and background (unetpp.network.masks); None: only the picture.
    """
    image, mask = split[index]
    height, width = mask.shape
    factor = min(1.0, THUMBNAIL_PX / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(display(image), size, interpolation=cv2.INTER_AREA)
    found = {
        "id": id,
        "uri": data_uri(small, "JPEG"),
        "width": size[0],
        "height": size[1],
        "share": float(np.mean((mask > 0) & (mask != IGNORE))),
    }
    if meaning is None:
        return found
    paths = []
    # Unlabelled pixels first, then the classes in order, so that overlapping labels are drawn on top.
    places = [(ERRORS["ignored"][:3], mask == IGNORE)]
    places += [(class_colour(number), inside) for number, inside in find_classes(mask, *meaning)]
    for colour, inside in places:
        shrunk = cv2.resize(inside.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
        if shrunk.any():
            paths.append({"d": outline_path(shrunk), "colour": colour})
    drawn = sum(len(path["d"]) for path in paths) <= PATH_BYTES
    sampled = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return found | {"paths": paths if drawn else [], "filled": mask_layers(sampled, *meaning)[0], "drawn": drawn}
