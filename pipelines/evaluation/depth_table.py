"""The depth report in a terminal: a row per depth, the gates, the decision and next commands, within 100 columns."""

import textwrap
from pathlib import Path

from pipelines.core.files import read_results
from pipelines.core.numbers import fixed, short
from pipelines.evaluation.cautions import find_cautions, says_objects

COLUMNS = 100


def summary(evaluation: Path, versions: Path) -> str:
    """The text at the end of a run, also shown by `unetpp summary`.

    Args:
        evaluation: folder of the evaluate stage.
        versions: versions.json of the register stage.

    Raises:
        UserError: the pipeline has not run.
    """
    report = read_results(evaluation / "report.json", "evaluate", ("depths", "recommendation"))
    registered = read_results(versions, "register", ("versions", "model_name"))
    names = ", ".join(f"{depth}: {version}" for depth, version in registered["versions"].items())
    champion = f"; champion: {registered['champion']}" if registered.get("champion") else ""
    known = textwrap.fill(f"registered as {registered['model_name']}, versions {names}{champion}", COLUMNS)
    return f"{describe(report)}\n\n{known}\n\n{NEXT}"


NEXT = """next
  unetpp report                         the depth report, in the browser
  unetpp predict scans/ --out masks/    masks of your images; the deepest depth, or --depth 2
  unetpp mlflow                         the registered versions, in the browser"""


def describe(report: dict) -> str:
    """report.json as text: tables, then the decision and the cautions."""
    depth = report["recommended_depth"]
    deepest = [name for name in report["depths"] if name != "mean"][-1]
    size = report.get("size_px")  # if it is missing, the score itself is at the network's size
    seen = None if size is None else f"at {size} px" if isinstance(size, int) else f"at {size[0]}x{size[1]}"
    several = len(report.get("classes", {}).get(deepest, {})) > 1 and not report.get("multilabel")
    head = ("depth", "iou_image", "95 %", f"to {deepest}", "95 %", *([seen] if seen else []))
    head = (*head, "mIoU" if several else "dice", *_QUALITY)
    parts = [
        _align([head, *(_quality(name, row, bool(seen), several) for name, row in report["depths"].items())], depth),
        *([_classes(report)] if several else []),
        *_objects(report, deepest),
        _align([_COST, *(_cost(name, row) for name, row in report["depths"].items())], depth),
        _gates(report),
        *_engines(report),
        textwrap.fill(report["recommendation"], COLUMNS, break_on_hyphens=False),
        *(textwrap.fill(f"caution: {one}", COLUMNS) for one in find_cautions(report)),
    ]
    return "\n\n".join(parts)


_QUALITY = ("boundary", "object", "ECE")
_COST = (
    "depth",
    "params",
    "MACs",
    "ms (p50)",
    "p95",
    "p99",
    "images/s",
    "batch",
    "pass MiB",
    "file MiB",
    "start s",
)


def _quality(name: str, row: dict, seen: bool, several: bool) -> tuple[str, ...]:
    return (
        name,
        f"{row['iou_image']:.3f}",
        f"{row['iou_image_low']:.3f} to {row['iou_image_high']:.3f}",
        f"{100 * row['difference_iou']:+.1f}",
        f"{100 * row['difference_iou_low']:+.1f} to {100 * row['difference_iou_high']:+.1f}",
        *([f"{row['iou_image_seen']:.3f}"] if seen else []),
        fixed(row.get("miou") if several else row["dice_image"]),
        fixed(row["boundary_f1"]),
        f"{row['object_f1']:.3f}",
        fixed(row["ece"]),
    )


def _objects(report: dict, deepest: str) -> list[str]:
    """A row per depth, if scores of objects add anything to those of masks."""
    if not says_objects(report):
        return []
    rows = [("objects", "AP", "95 %", f"to {deepest}", "95 %", "F1", "95 %")]
    rows += [
        (
            name,
            f"{row['dsb_ap']:.3f}",
            f"{row['dsb_ap_low']:.3f} to {row['dsb_ap_high']:.3f}",
            f"{100 * row['difference_ap']:+.1f}",
            f"{100 * row['difference_ap_low']:+.1f} to {100 * row['difference_ap_high']:+.1f}",
            f"{row['object_f1']:.3f}",
            f"{row['object_f1_low']:.3f} to {row['object_f1_high']:.3f}",
        )
        for name, row in report["depths"].items()
    ]
    remark = textwrap.fill(report["objects"]["remark"], COLUMNS, break_on_hyphens=False)
    return [_align(rows, report["recommended_depth"]), *([remark] if remark else [])]


def _classes(report: dict) -> str:
    """A row per class: its IoU per image at each depth."""
    ious: dict[str, dict[str, float | None]] = report["classes"]
    rows = [(one, *(fixed(each[one]) for each in ious.values())) for one in next(iter(ious.values()))]
    return _align([("class, IoU", *ious), *rows], None)


def _cost(name: str, row: dict) -> tuple[str, ...]:
    return (
        name,
        short(row["parameters"]),
        short(row["macs"]),
        f"{row['latency_ms']:.1f}",
        fixed(row["latency_p95_ms"], 1),
        fixed(row["latency_p99_ms"], 1),
        f"{row['images_per_s']:.0f}",
        f"{row['best_batch']}",
        fixed(row["peak_memory_mib"], 1),
        f"{row['size_mib']:.2f}",
        f"{row['cold_start_ms'] / 1000:.1f}",
    )


def _engines(report: dict) -> list[str]:
    """For each depth, the engine that `--engine auto` chooses here; report.json and the page have all of them."""
    rows = [row for row in (report.get("engines") or {}).get("rows", []) if row["auto"]]
    cells = [
        (row["depth"], row["engine"], f"{row['latency_ms']:.1f}", f"{100 * row['val_difference_iou']:+.2f}")
        for row in rows
    ]
    return [_align([("depth", "--engine auto", "ms (p50)", "IoU on val to fp32"), *cells], None)] if rows else []


def _align(rows: list[tuple[str, ...]], depth: int | None) -> str:
    """Aligned columns, with '>' at a depth."""
    chosen = f"L{depth}"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        aligned = [name.ljust(widths[0])] + [one.rjust(width) for one, width in zip(cells, widths[1:], strict=True)]
        lines.append(("> " if name == chosen else "  ") + "  ".join(aligned).rstrip())
    return "\n".join(lines)


def _gates(report: dict) -> str:
    """A row per gate: its limit and the value of each name, with failures marked. A single line if all pass."""
    gates: dict[str, list[dict]] = report["gates"]
    if all(one["passed"] for each in gates.values() for one in each):
        return f"  gates passed at every depth: {', '.join(one['name'] for one in next(iter(gates.values())))}"
    rows: list[tuple[str, ...]] = [("gate", "limit", *gates)]
    for number, gate in enumerate(next(iter(gates.values()))):
        found = [one[number] for one in gates.values()]
        cells = ["off " if one["passed"] is None else f"{fixed(one['value'])}{_MARK[one['passed']]}" for one in found]
        rows.append((gate["name"], f"{'<=' if gate['direction'] == 'at most' else '>='} {gate['limit']:g}", *cells))
    off = [f"  {gate['name']}: {gate['what']}" for gate in next(iter(gates.values())) if gate["passed"] is None]
    told = [textwrap.fill(one, COLUMNS, subsequent_indent="  ") for one in off]
    if any(one["passed"] is False for each in gates.values() for one in each):
        told.append("  ! beyond the limit, or not measured")
    return "\n".join([_align(rows, None), *told])


_MARK = {True: " ", False: "!"}
