"""The charts of the depth report: accuracy against latency, differences with the tolerance, reliability."""

from markupsafe import Markup

from pipelines.pages.html_page import ACCENT, INK, chart

DASH = (0, (5, 4))
DOT = (0, (1, 2))
MARKS = "osD^vPX"


def accuracy_against_latency(
    depths: dict[str, dict], chosen: str | None, tolerance_iou: float | None, max_latency_ms: float | None
) -> Markup | None:
    """A point and an interval for each name; None if no depth has a latency."""
    shown = {name: row for name, row in depths.items() if None not in (row.get("latency_ms"), row.get("iou_image"))}
    single = {name: row for name, row in shown.items() if name != "mean"}
    if not single:
        return None
    with chart("latency-caption") as drawn:
        axes = drawn.axes
        for name, row in shown.items():
            iou, marked = row["iou_image"], name == chosen
            low, high = (iou if row.get(key) is None else row[key] for key in ("iou_image_low", "iou_image_high"))
            axes.errorbar(
                row["latency_ms"],
                iou,
                yerr=[[max(0.0, iou - low)], [max(0.0, high - iou)]],
                fmt="D" if name == "mean" else "o",
                color=ACCENT if marked else INK,
                markerfacecolor=ACCENT if marked else "none",
                markersize=9 if marked else 6,
                elinewidth=1.2,
                capsize=3,
            )
            axes.annotate(
                name,
                (row["latency_ms"], iou),
                xytext=(8, -14 if name == "mean" else 6),  # the mean stands close to the deepest depth
                textcoords="offset points",
                weight="bold" if marked else "normal",
                color=ACCENT if marked else INK,
            )
        latencies, ious = zip(*((row["latency_ms"], row["iou_image"]) for row in single.values()), strict=True)
        axes.plot(latencies, ious, color=INK, alpha=0.35, linewidth=1, zorder=0)
        if tolerance_iou is not None:
            floor = max(ious) - tolerance_iou
            axes.axhline(floor, color=INK, alpha=0.6, linewidth=1, linestyle=DASH)
            _beside(axes, "tolerance", floor)
        if max_latency_ms is not None:
            axes.axvline(max_latency_ms, color=INK, alpha=0.6, linewidth=1, linestyle=DOT)
        axes.set_xlim(0, 1.25 * max(row["latency_ms"] for row in shown.values()) or 1)
        axes.set_xlabel("median latency of one image, ms")
        axes.set_ylabel("IoU per image")
    return drawn.svg


def _beside(axes, text: str, y: float) -> None:
    axes.annotate(
        text,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        size=9,
        annotation_clip=False,
    )


def differences(
    rows: dict[str, tuple[float, float, float]], other: str, chosen: str | None, tolerance_iou: float | None
) -> Markup | None:
    """Each name's paired difference from `other`, mean, low and high, in points; None for a single name."""
    if len(rows) < 2:
        return None
    with chart("difference-caption", (5.4, 1.3 + 0.42 * len(rows))) as drawn:
        axes = drawn.axes
        for y, (name, row) in enumerate(reversed(rows.items())):
            mean, low, high = (100 * value for value in row)
            colour = ACCENT if name == chosen else INK
            axes.plot([low, high], [y, y], color=colour, linewidth=2.4 if name == chosen else 1.4)
            axes.plot(mean, y, "D" if name == "mean" else "o", color=colour, markersize=8 if name == chosen else 6)
        axes.axvline(0, color=INK, alpha=0.6, linewidth=1)
        if tolerance_iou is not None:
            axes.axvline(-100 * tolerance_iou, color=INK, alpha=0.6, linewidth=1, linestyle=DASH)
            _above(axes, "tolerance", -100 * tolerance_iou)
        axes.set_yticks(range(len(rows)), labels=list(reversed(rows)))
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() == chosen else "normal")
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(f"IoU points against {other}")
    return drawn.svg


def _above(axes, text: str, x: float) -> None:
    place = {"xycoords": ("data", "axes fraction"), "xytext": (0, 3), "textcoords": "offset points"}
    axes.annotate(text, (x, 1), ha="center", va="bottom", size=9, annotation_clip=False, **place)


def reliability(bins: dict[str, list[dict]], chosen: str | None) -> Markup | None:
    """How often pixels are foreground, by their predicted probability; None without bins."""
    filled = {
        name: [one for one in found if None not in (one.get("confidence"), one.get("accuracy"))]
        for name, found in bins.items()
    }
    filled = {name: found for name, found in filled.items() if found}
    if not filled:
        return None
    with chart("reliability-caption", (5.4, 4.4)) as drawn:
        axes = drawn.axes
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.6, linewidth=1, linestyle=DASH)
        for (name, found), mark in zip(filled.items(), MARKS * len(filled), strict=False):
            axes.plot(
                [one["confidence"] for one in found],
                [one["accuracy"] for one in found],
                marker=mark,
                markersize=6 if name == chosen else 4.5,
                markerfacecolor=ACCENT if name == chosen else "none",
                color=ACCENT if name == chosen else INK,
                alpha=1 if name == chosen else 0.55,
                linewidth=2 if name == chosen else 1,
                zorder=3 if name == chosen else 2,
                label=name,
            )
        axes.legend(frameon=False, loc="upper left")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("mean probability of a bin")
        axes.set_ylabel("share that is foreground")
    return drawn.svg
