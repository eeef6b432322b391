"""The depth report: what evaluate measured, as one self-contained page and as a table for the terminal."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pipelines.page import ACCENT, INK, chart, data_uri, display, outline, render, short
from unetpp.masks import IGNORE

SIDE_PX = 288  # overlays are enlarged or reduced to about this, so that a pixel stays visible and the page small

# Okabe and Ito's colours, told apart by colour-blind readers; what was missed is striped as well.
COLOURS = {
    "found": (0, 114, 178),
    "extra": (240, 228, 66),
    "missed": (213, 94, 0),
    "confused": (204, 121, 167),
}


@dataclass(frozen=True)
class Sample:
    """One test image to show: its rank among all, its row of images.csv, and the masks of every depth."""

    rank: str | None  # best, median, worst, or None for one in between
    row: dict
    image: np.ndarray  # (H, W, C) uint8, uint16 or float32
    mask: np.ndarray  # (H, W)
    masks_hat: dict[str, np.ndarray]  # (H, W) by name


def depth_table(metrics: dict) -> str:
    """What report.json holds, as aligned text: a row a depth, '>' at the recommended one."""
    head: tuple[str, ...] = ("depth", "iou_image", "95 % interval", "dice_image", "params", "MACs")
    head += ("latency ms", "p95", "images/s", "memory MiB", "file MiB")
    rows: list[tuple[str, ...]] = [head]
    for name, row in metrics["depths"].items():
        rows.append(
            (
                name,
                f"{row['iou_image']:.3f}",
                f"{row['iou_image_low']:.3f} to {row['iou_image_high']:.3f}",
                f"{row['dice_image']:.3f}",
                short(row["parameters"]),
                short(row["macs"]),
                f"{row['latency_ms']:.1f}",
                f"{row['latency_p95_ms']:.1f}",
                f"{row['images_per_s']:.0f}",
                f"{row['peak_memory_mib']:.1f}",
                f"{row['size_mib']:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(("> " if row[0] == recommended(metrics) else "  ") + "  ".join(cells))
    return "\n".join(lines)


def recommended(metrics: dict) -> str | None:
    """The name of the recommended depth, such as L2, or None."""
    depth = metrics["recommended_depth"]
    return None if depth is None else f"L{depth}"


def build_report(
    metrics: dict,
    rows: list[dict],
    samples: list[Sample],
    extremes: dict[str, dict[str, int]],
    shown: str,
    rule: dict,
    provenance: dict,
) -> str:
    """The page, self-contained.

    Args:
        metrics: what report.json holds.
        rows: what images.csv holds.
        samples: the images to show.
        extremes: for each name, the index in `rows` of its best, median and worst image.
        shown: the name that `samples` were ranked by.
        rule: tolerance_iou and max_latency_ms of the recommendation, and the number of resamples.
        provenance: what the numbers come from, by what it is called.
    """
    names = list(metrics["depths"])
    return render(
        "report.html.j2",
        metrics=metrics,
        names=names,
        recommended=recommended(metrics),
        plot=plot(metrics, rule),
        samples=[_panels(sample, names) for sample in samples],
        confused=any(_known(sample.mask, sample.mask).max() > 1 for sample in samples),
        kinds=_by_kind(rows, names),
        extremes={name: {rank: rows[index] for rank, index in picked.items()} for name, picked in extremes.items()},
        shown=shown,
        rule=rule,
        provenance={key: value for key, value in provenance.items() if value is not None},
    )


def _by_kind(rows: list[dict], names: list[str]) -> list[dict]:
    """Number of images and mean IoU by kind of image, the commonest first."""
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row)
    ordered = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {
            "kind": kind,
            "num_images": len(group),
            "iou": {name: float(np.mean([row[f"iou_{name}"] for row in group])) for name in names},
        }
        for kind, group in ordered
    ]


def plot(metrics: dict, rule: dict) -> Markup:
    """Accuracy against latency."""
    with chart("plot-caption") as drawn:
        axes = drawn.axes
        single = {name: row for name, row in metrics["depths"].items() if name != "mean"}
        for name, row in metrics["depths"].items():
            iou = row["iou_image"]
            spread = [[max(0.0, iou - row["iou_image_low"])], [max(0.0, row["iou_image_high"] - iou)]]
            chosen = name == recommended(metrics)
            axes.errorbar(
                row["latency_ms"],
                iou,
                yerr=spread,
                fmt="D" if name == "mean" else "o",
                color=ACCENT if chosen else INK,
                markerfacecolor=ACCENT if chosen else "none",
                markersize=9 if chosen else 6,
                elinewidth=1.2,
                capsize=3,
            )
            axes.annotate(
                f"{name} (recommended)" if chosen else name,
                (row["latency_ms"], iou),
                xytext=(8, -14 if name == "mean" else 6),  # the mean stands close to the deepest depth
                textcoords="offset points",
                weight="bold" if chosen else "normal",
            )
        axes.plot(
            [row["latency_ms"] for row in single.values()],
            [row["iou_image"] for row in single.values()],
            color=INK,
            alpha=0.35,
            linewidth=1,
            zorder=0,
        )
        floor = max(row["iou_image"] for row in single.values()) - rule["tolerance_iou"]
        axes.axhline(floor, color=INK, alpha=0.6, linewidth=1, linestyle=(0, (5, 4)))
        axes.annotate(
            "tolerance",
            (1, floor),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            size=9,
            annotation_clip=False,
        )
        if rule["max_latency_ms"] is not None:
            axes.axvline(rule["max_latency_ms"], color=INK, alpha=0.6, linewidth=1, linestyle=(0, (1, 2)))
        axes.set_xlim(0, 1.25 * max([row["latency_ms"] for row in metrics["depths"].values()]))
        axes.set_xlabel("median latency of one image, ms")
        axes.set_ylabel("iou_image")
    return drawn.svg


def _panels(sample: Sample, names: list[str]) -> dict:
    """A sample as the template needs it: the image and an overlay for each name, as data URIs."""
    base = display(sample.image)  # (H, W, 3)
    outlined = base.copy()
    outlined[outline(_known(sample.mask, sample.mask))] = COLOURS["extra"]
    return {
        "rank": sample.rank,
        "row": sample.row,
        "image": data_uri(enlarge(base)),
        "truth": data_uri(enlarge(outlined)),
        "overlays": {name: data_uri(overlay(base, sample.mask, sample.masks_hat[name])) for name in names},
    }


def _known(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values (H, W), 0 where the mask is IGNORE."""
    return np.where(mask == IGNORE, np.uint8(0), values)


def overlay(base: np.ndarray, mask: np.ndarray, mask_hat: np.ndarray) -> np.ndarray:
    """Tint each pixel of (H, W, 3) by what the prediction made of it, enlarged for display.

    Blue is found, yellow is extra (predicted alone), striped orange is missed, pink is another class, or other labels.
    What nobody annotated is left as it is.
    """
    mask, mask_hat = _known(mask, mask), _known(mask_hat, mask)
    grey = base.astype(np.float32).mean(axis=2, keepdims=True).repeat(3, axis=2)
    tinted, mask, mask_hat = (enlarge(each) for each in (grey.round().astype(np.uint8), mask, mask_hat))
    rows, columns = np.indices(mask.shape)
    stripes = (rows + columns) % 8 < 4
    regions = {
        "found": ((mask > 0) & (mask_hat == mask), 0.45),
        "extra": ((mask == 0) & (mask_hat > 0), 0.75),
        "missed": ((mask > 0) & (mask_hat == 0), np.where(stripes, 0.95, 0.45)),
        "confused": ((mask > 0) & (mask_hat > 0) & (mask != mask_hat), 0.8),
    }
    result = tinted.astype(np.float32)
    for name, (where, strength) in regions.items():
        alpha = (where * strength)[..., None]
        result = result * (1 - alpha) + np.array(COLOURS[name], dtype=np.float32) * alpha
    return result.round().astype(np.uint8)


def enlarge(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 by whole factors to a longer side of about SIDE_PX, by the nearest pixel."""
    longer = max(array.shape[:2])
    factor = max(1, round(SIDE_PX / longer))
    step = max(1, longer // (2 * SIDE_PX))
    return array[::step, ::step].repeat(factor, axis=0).repeat(factor, axis=1)
