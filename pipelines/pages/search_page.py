"""The search as one page: the front, the effect of each value, the curves of the trials, and their outcomes."""

from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from pipelines.core.numbers import say, short
from pipelines.pages.html_page import ACCENT, INK, chart, render

Point = dict[str, Any]  # a row of search.csv
# Okabe and Ito's colours, by depth.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7")
MOST_LABELLED = 14  # lines that carry their trial's number
MOST_POINTS = 24  # in the table: the chosen one, the front, then the most accurate


def build_page(facts: dict[str, Any]) -> str:
    """The page, self-contained.

    Args:
        facts: what stage search wrote into page.json (`pipelines.tuning.results`).
    """
    search, points, trials = facts["search"], facts["points"], facts["trials"]
    chosen, there = points[facts["chosen"]], [point for point in points if point["measured"]]
    charts: dict[str, Markup] = {}
    if there:
        charts["front"] = front_chart(there, chosen, search["cost"], facts["cost"], search["budget"][search["cost"]])
        charts["parallel"] = parallel_chart(there, search["cost"], facts["cost"])
    if any(trial["curve"] for trial in trials):
        charts["curves"] = curves_chart(trials, chosen)
    if facts["importance"]:
        charts["importance"] = importance_chart(facts["importance"])
    ordered = sorted(there, key=lambda point: (-point["chosen"], -point["on_front"], -point["val_iou"]))
    return render(
        "search.html.j2",
        **facts | {"chosen": chosen, "points": (ordered or points)[:MOST_POINTS]},
        single=not trials and not there,
        num_points=len(points),
        say=say,
        whole=len(chosen["widths"].split()) - 1,
        charts=charts,
        budget={key: limit for key, limit in search["budget"].items() if limit is not None},
    )


def front_chart(points: list[Point], chosen: Point, cost: str, label: str, limit: float | None) -> Markup:
    """Every point by cost and val IoU in the colour of its depth, the front as a line."""
    with chart("front-caption", (6.4, 4.0)) as made:
        axes = made.axes
        for depth in sorted({point["depth"] for point in points}):
            of_depth = [point for point in points if point["depth"] == depth]
            axes.plot(
                [point[cost] for point in of_depth],
                [point["val_iou"] for point in of_depth],
                "o",
                color=COLOURS[int(depth[1:]) - 1],
                markersize=6,
                label=depth,
            )
        front = sorted((point for point in points if point["on_front"]), key=lambda point: point[cost])
        axes.plot(
            [point[cost] for point in front],
            [point["val_iou"] for point in front],
            color=INK,
            linewidth=1.2,
            drawstyle="steps-post",
            label="front",
            zorder=1,
        )
        axes.plot(
            chosen[cost], chosen["val_iou"], "o", color=ACCENT, markersize=15, fillstyle="none", markeredgewidth=2
        )
        axes.annotate(
            "chosen",
            (chosen[cost], chosen["val_iou"]),
            xytext=(0, -22),
            textcoords="offset points",
            ha="center",
            weight="bold",
        )
        if limit is not None:
            axes.axvline(limit, color=INK, alpha=0.6, linewidth=1, linestyle=(0, (1, 2)))
        axes.set_xscale("log")
        axes.margins(0.08, 0.14)
        low, high = axes.get_xlim()
        last = front[-1]
        axes.plot([last[cost], high], [last["val_iou"]] * 2, color=INK, linewidth=1.2, zorder=1)
        axes.set_xlim(low, high)
        ticks = [digit * 10.0**power for power in range(-3, 13) for digit in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high] or [last[cost]]
        axes.set_xticks(ticks, labels=[short(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.set_ylabel("val IoU")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=7, handletextpad=0.3, columnspacing=1)
    return made.svg


def parallel_chart(points: list[Point], cost: str, label: str) -> Markup:
    """A line for each point through an axis for each value, its cost and its val IoU."""
    columns = {"widths": [point["widths"] for point in points], "depth": [point["depth"] for point in points]}
    columns |= {key: [point["params"][key] for point in points] for key in points[0]["params"]}
    columns |= {label: [point[cost] for point in points], "val IoU": [point["val_iou"] for point in points]}
    with chart("parallel-caption", (max(6.4, 1.35 * len(columns)), 4.2)) as made:
        axes = made.axes
        heights = {}
        for x, (key, values) in enumerate(columns.items()):
            heights[key], ticks = _axis(values)
            axes.axvline(x, color=INK, linewidth=0.8, alpha=0.5)
            for y, said in ticks:
                axes.annotate(
                    said, (x, y), xytext=(4, 2), textcoords="offset points", size=7.5, alpha=0.9, parse_math=False
                )
        for index, point in enumerate(points):
            line = [heights[key][index] for key in columns]
            style: dict[str, Any] = {"color": INK, "alpha": 0.18, "linewidth": 1}
            if point["on_front"]:
                style = {"color": COLOURS[int(point["depth"][1:]) - 1], "alpha": 0.9, "linewidth": 1.4}
            if point["chosen"]:
                style = {"color": ACCENT, "linewidth": 3.2}
            axes.plot(range(len(columns)), line, **style)
        labels = [key.replace(".", ".\n", 1) for key in columns]
        axes.set_xticks(range(len(columns)), labels=labels, parse_math=False)
        axes.set_yticks([])
        axes.set_xlim(-0.4, len(columns) - 0.5)
        axes.spines[["left", "bottom"]].set_visible(False)
    return made.svg


def _axis(values: list) -> tuple[list[float], list[tuple[float, str]]]:
    """Values as heights from 0 to 1, and what to write at which height."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        spread = (high - low) or 1
        said = [short(one) if one >= 1000 else f"{one:.3g}" for one in (low, high)]
        return [(value - low) / spread for value in values], [(0, said[0]), *([(1, said[1])] if high > low else [])]
    labels = list(dict.fromkeys(map(say, values)))
    places = {label: index / max(1, len(labels) - 1) for index, label in enumerate(labels)}
    shown = labels if len(labels) <= 8 else [labels[0], labels[-1]]
    return [places[say(value)] for value in values], [(places[label], label) for label in shown]


def curves_chart(trials: list[dict[str, Any]], chosen: Point) -> Markup:
    """Each trial's best depth by epoch; for the chosen trial every depth, in colours."""
    with chart("curves-caption", (6.4, 4.0)) as made:
        axes = made.axes
        labelled = sum(bool(trial["curve"]) for trial in trials) <= MOST_LABELLED
        for trial in trials:
            if not trial["curve"] or not trial["best"]:
                continue
            epochs = [int(row["epoch"]) for row in trial["curve"]]
            best = max(trial["best"], key=lambda depth: trial["best"][depth])
            shown = list(trial["best"]) if trial["number"] == chosen["trial"] else [best]
            for depth in shown:
                own = trial["number"] == chosen["trial"]
                axes.plot(
                    epochs,
                    [row[f"val_iou_{depth}"] for row in trial["curve"]],
                    color=COLOURS[int(depth[1:]) - 1] if own else INK,
                    alpha=1 if own else 0.3,
                    linewidth=1.8 if own else 1,
                    marker="o",
                    markersize=3,
                    label=f"{depth} of trial {trial['number']}" if own else None,
                )
            if labelled and trial["number"] != chosen["trial"]:
                last = trial["curve"][-1][f"val_iou_{best}"]
                axes.annotate(
                    str(trial["number"]),
                    (epochs[-1], last),
                    xytext=(4, -3),
                    textcoords="offset points",
                    size=8,
                    alpha=0.8,
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel("val IoU")
        axes.legend(frameon=False, loc="best")
    return made.svg


def importance_chart(explained: dict[str, float]) -> Markup:
    """A bar for each searched value."""
    with chart("importance-caption", (6.4, 0.9 + 0.4 * len(explained))) as made:
        axes = made.axes
        names = list(explained)[::-1]
        axes.barh(range(len(names)), [explained[key] * 100 for key in names], color=ACCENT, height=0.6)
        axes.set_yticks(range(len(names)), labels=names, parse_math=False)
        for y, key in enumerate(names):
            axes.annotate(
                f"{explained[key]:.0%}", (explained[key] * 100, y), xytext=(4, -4), textcoords="offset points", size=9
            )
        axes.set_xlim(0, 108)
        axes.set_xlabel("% of the variance of val IoU that it explains alone")
    return made.svg
