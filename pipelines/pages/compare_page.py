"""Two evaluations side by side: a table for the terminal, and a page."""

from pipelines.core.numbers import fixed
from pipelines.evaluation.compare import Comparison, Row
from pipelines.evaluation.scored import SCORES
from pipelines.pages.depth_charts import differences
from pipelines.pages.html_page import render

MOST_CHANGED = 5  # images that gained, and as many that lost


def comparison_text(found: Comparison, names: tuple[str, str]) -> str:
    """The output of `unetpp compare`: IoU by depth, the differences with their intervals, and the conclusion."""
    head = ("  depth", "IoU of A", "of B", "B - A, points", "95 % interval", "ms of A", "of B", "")
    rows = [head, *(_cells(found, row) for row in _rows(found))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join((row[0].ljust(widths[0]), *cells, row[-1])).rstrip())
    return "\n".join((f"A  {names[0]}", f"B  {names[1]}", found.remark, "", *lines, "", conclusion(found)))


def _rows(found: Comparison) -> list[Row]:
    """The depths of the table, plus the chosen ones if it lacks them."""
    rows, chosen = found.tables["iou"], found.chosen
    return rows if chosen is None or chosen in rows else [*rows, chosen]


def _cells(found: Comparison, row: Row) -> tuple[str, ...]:
    difference = row.difference
    mark = ">" if row == found.chosen else " "
    latencies = (fixed(latency(found, row, side), 1) for side in (0, 1))
    return (
        f"{mark} {':'.join(dict.fromkeys(row.names))}",
        *(fixed(mean) for mean in row.means),
        signed(difference.mean),
        f"{signed(difference.low)} to {signed(difference.high)}",
        *latencies,
        row.verdict,
    )


def signed(iou: float) -> str:
    """A difference in points: 0.004 is '+0.4', and zero has no sign."""
    text = f"{100 * iou:+.1f}"
    return "0.0" if text[1:] == "0.0" else text


def latency(found: Comparison, row: Row, side: int) -> float | None:
    """Median latency in ms of a row's A (side 0) or B (side 1), if it was measured."""
    return found.sides[side].report["depths"].get(row.names[side], {}).get("latency_ms")


def conclusion(found: Comparison) -> str:
    """The result for the two chosen depths, in a sentence."""
    row = found.chosen
    if row is None:
        lacking = [name for name, side in zip("AB", found.sides, strict=True) if side.depth is None]
        return f"{' and '.join(lacking)} recommend{'s' if len(lacking) == 1 else ''} no depth to compare."
    over = f"{row.difference.num_images} images in {row.difference.num_groups} groups"
    a, b = (f"{name} of {side} ({why(found, at)})" for at, (name, side) in enumerate(zip(row.names, "AB", strict=True)))
    by_ap = "" if found.chosen_ap is None else f" {_said(found.chosen_ap, 'AP')}: {found.chosen_ap.verdict}."
    return f"{b} against {a}: {_said(row, 'IoU')} on {over}: {row.verdict}.{by_ap}"


def _said(row: Row, score: str) -> str:
    mean, low, high = (signed(value) for value in (row.difference.mean, row.difference.low, row.difference.high))
    return f"{mean} {score} points [{low}, {high}]"


def why(found: Comparison, side: int) -> str:
    """Why a side's depth was chosen for the comparison."""
    return "recommended" if found.sides[side].version_depth is None else "registered"


def build_page(found: Comparison, names: tuple[str, str]) -> str:
    """compare.html, self-contained.

    Args:
        names: what the user called A and B.
    """
    rows = {row.names[0]: row.difference for row in found.tables["iou"]}
    machines = [side.report.get("machine", {}) for side in found.sides]
    keys = ("device", "processor", "threads", "precision", "size_px")
    return render(
        "compare.html.j2",
        found=found,
        names=names,
        labels=SCORES,
        conclusion=conclusion(found),
        latency=latency,
        rows=_rows(found),
        chart=differences({name: (one.mean, one.low, one.high) for name, one in rows.items()}, "A", None, None),
        same_machine=all(machines[0].get(key) == machines[1].get(key) for key in keys),
        machines=[", ".join(f"{key} {one[key]}" for key in keys if key in one) for one in machines],
        lost=[one for one in found.changed[:MOST_CHANGED] if one[2] < one[1]],
        won=[one for one in found.changed[::-1][:MOST_CHANGED] if one[2] > one[1]],
        shown=(found.chosen or found.tables["iou"][-1]).names,
        meant=" and ".join(dict.fromkeys(why(found, side) for side in (0, 1))),
    )
