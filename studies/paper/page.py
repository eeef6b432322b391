"""Write docs/paper.md and its plot from studies/paper/results: no number in them is typed by hand.

python -m studies.paper.page
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

import matplotlib
import numpy as np

from pipelines.core.tables import read_rows
from studies.paper import records
from studies.paper.run import FOLDER, ROOT, planned, read_study
from studies.paper.tables import MEAN, NOT_TRAINED, Difference, Results, Row, best_depths, depths_differ, gains_differ

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

OUT = ROOT / "docs" / "paper.md"
IMAGES = ROOT / "docs" / "images"
NAMES = {
    "unet_L1": "U-Net L1",
    "unet_L2": "U-Net L2",
    "unet_L3": "U-Net L3",
    "unet": "U-Net L4",
    "unet_wide": "wide U-Net",
    "unet_plus": "UNet+",
    "unet_pp": "UNet++",
    "unet_pp_ds": "UNet++, deep supervision",
    "unet_pp_sum": "UNet++, deep supervision, sum of losses",
    "unet_pp_L2": "UNet++ L2 alone",
    "unet_pp_L3": "UNet++ L3 alone",
    "lite_unet": "U-Net on EfficientNet-Lite0",
    "lite_unet_plus": "UNet+ on EfficientNet-Lite0",
    "lite_unet_pp": "UNet++ on EfficientNet-Lite0",
    "imagenet_unet": "U-Net on EfficientNet-Lite0 (ImageNet)",
    "imagenet_unet_plus": "UNet+ on EfficientNet-Lite0 (ImageNet)",
    "imagenet_unet_pp": "UNet++ on EfficientNet-Lite0 (ImageNet)",
}
ALONE = ["unet_L1", "unet_L2", "unet_L3", "unet"]
PUBLISHED_PX = "256"  # side of the nuclei images of which Dice is published


class Claim(NamedTuple):
    """That a network at a depth (None: its deepest) is better than another one."""

    text: str
    network: str
    other: str
    depth: str | None = None
    other_depth: str | None = None


DS = "unet_pp_ds"
LEVELS = [
    Claim(f"U-Net {depth} is better than {shallower}", network, other)
    for (shallower, other), (depth, network) in pairwise(zip(("L1", "L2", "L3", "L4"), ALONE, strict=True))
]
CLAIMS = [
    *LEVELS,
    Claim("UNet++ with deep supervision is better than U-Net", DS, "unet"),
    Claim("UNet++ with deep supervision is better than the wide U-Net", DS, "unet_wide"),
    Claim("UNet++ without deep supervision is better than U-Net", "unet_pp", "unet"),
    Claim("UNet++ is better with deep supervision than without", DS, "unet_pp"),
    Claim("The mean of its heads is better than the deepest head", DS, DS, MEAN),
    *(Claim(f"Pruning to {depth} costs accuracy", DS, DS, None, depth) for depth in ("L3", "L2", "L1")),
    *(
        Claim(f"{depth} pruned out of UNet++ is better than U-Net {depth} alone", DS, f"unet_{depth}", depth)
        for depth in ("L1", "L2", "L3")
    ),
    *(
        Claim(f"{depth} pruned out of UNet++ is better than UNet++ {depth} alone", DS, f"unet_pp_{depth}", depth)
        for depth in ("L2", "L3")
    ),
]
BACKBONES = [
    Claim("UNet++ is better than U-Net", "unet_pp", "unet"),
    Claim("UNet++ is better than UNet+", "unet_pp", "unet_plus"),
    Claim("UNet+ is better than U-Net", "unet_plus", "unet"),
]
PREFIXES = {
    "our own encoder": "",
    "EfficientNet-Lite0, random": "lite_",
    "EfficientNet-Lite0, ImageNet": "imagenet_",
}
IMAGENET = Claim("ImageNet weights are better than random initialization", "imagenet_unet_pp", "lite_unet_pp")
SUM = Claim("The sum of the heads' losses is better than their mean", "unet_pp_sum", DS)
HEADS = [
    Claim("Deep supervision hurts: UNet++ is better without it (mean of losses)", "unet_pp", DS),
    Claim("It also hurts with the sum of losses", "unet_pp", "unet_pp_sum"),
    SUM,
]
Setting = tuple[str, str, str]  # set, recipe, scale


def read_results() -> dict[Setting, Results]:
    """Of each setting that study.yaml plans or that has results: its runs by network and seed."""
    study = read_study()
    plans = list(planned(study))
    found: dict[Setting, dict[str, dict[int, dict]]] = {}
    for name, recipe in dict.fromkeys((plan.set, plan.recipe) for plan in plans):
        runs = records.read(name, recipe)
        scales = [plan.run.scale for plan in plans if (plan.set, plan.recipe) == (name, recipe)]
        for scale in dict.fromkeys([*scales, *(run.scale for run in runs)]):
            by_name = found.setdefault((name, recipe, scale), {})
            for run, one in sorted(runs.items()):
                if run.scale == scale:
                    by_name.setdefault(run.network, {})[run.seed] = one
    return {
        setting: Results({name: by_name[name] for name in NAMES if name in by_name}, _block(study, setting))
        for setting, by_name in found.items()
    }


def _block(study: dict, setting: Setting) -> int:
    return study["sets"][setting[0]].get("block", 1)


def judge(results: Results, claim: Claim) -> str:
    """A cell: whether the claim holds, with its interval."""
    return str(difference(results, claim) or NOT_TRAINED)


def difference(results: Results, claim: Claim) -> Difference | None:
    row, other = results.row(claim.network, claim.depth), results.row(claim.other, claim.other_depth)
    return results.compare(row, other)


def table(first: str, columns: Mapping[str, Results], claims: Iterable[Claim], more: Iterable[list[str]] = ()):
    """Markdown lines: a row a claim, a column for each of the results."""
    rows = [*more, *([claim.text, *(judge(one, claim) for one in columns.values())] for claim in claims)]
    return markdown([first, *columns], rows)


def markdown(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [head, [":--"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def depth_lines(columns: Mapping[str, Results]) -> list[str]:
    """The claims about all sets together, and the table of the others."""
    best = {name: best_depths(results, ALONE) for name, results in columns.items()}
    stars = ["*" * bool(found and columns[name].seed_sd is None) for name, found in best.items()]
    cells = [(", ".join(found) or NOT_TRAINED) + star for found, star in zip(best.values(), stars, strict=True)]
    ious = [", ".join(iou(results.row(name)) for name in ALONE) for results in columns.values()]
    differ = depths_differ(best)
    rows = [["U-Net L1, L2, L3, L4, each trained alone: IoU", *ious], ["Best depths of these", *cells]]
    lines = [f"The optimal depth of a U-Net differs by data set: {differ}{max(stars) * (differ != NOT_TRAINED)}.", ""]
    lines += [
        "The gain of one more level differs by data set (largest minus smallest gain, points of IoU):",
        "",
    ]
    for claim in LEVELS:
        gains = {name.partition(",")[0]: difference(results, claim) for name, results in columns.items()}
        lines.append(f"- {claim.text}: {gains_differ(gains)}")
    lines.append("")
    return lines + table("claim", columns, CLAIMS, rows)


def iou(row: Row | None) -> str:
    return f"{row.scores('iou_image').mean():.3f}" if row else "?"


def backbone_lines(results: Results) -> list[str]:
    columns = {
        title: Results({name.removeprefix(prefix): runs for name, runs in results.runs.items() if _is_of(name, prefix)})
        for title, prefix in PREFIXES.items()
    }
    lines = table("claim, without deep supervision", columns, BACKBONES)
    return [*lines, "", f"{IMAGENET.text} (UNet++): {judge(results, IMAGENET)}."]


def _is_of(name: str, prefix: str) -> bool:
    return name.startswith(prefix) if prefix else not name.startswith(("lite_", "imagenet_"))


def head_lines(results: Mapping[Setting, Results]) -> list[str]:
    """Sum against mean, and what follows for `train.head_weights`."""
    columns = {
        title(setting): one for setting, one in results.items() if setting[0] == "dsb_96" or setting[0] == "pets"
    }
    verdicts = [judge(one, SUM) for setting, one in results.items() if setting[0] == "pets"]
    if any("holds" in one for one in verdicts):
        default = "should become `sum`, which is better with the recipe of params.yaml"
    elif all(one == NOT_TRAINED for one in verdicts):
        default = "stays `mean` until both have been trained with the recipe of params.yaml"
    else:
        default = "stays `mean`: with the recipe of params.yaml the sum is not shown to be better"
    return [*table("claim", columns, HEADS), "", f"So the default of `train.head_weights` {default}."]


def title(setting: Setting) -> str:
    name, recipe, scale = setting
    return f"`{name}`, {'' if recipe == 'ours' else f'recipe `{recipe}`, '}{scale} widths"


def details(setting: Setting, results: Results) -> list[str]:
    """Every network of a setting at every depth, folded away."""
    head = ["network", "at", "seeds", "iou_image", "dice_image", "iou_pixels", "mIoU", "parameters", "MACs at 128x128"]
    rows, first = [], next(iter(next(iter(results.runs.values())).values()))
    for name, runs in results.runs.items():
        for depth, facts in next(iter(runs.values()))["depths"].items():
            cells = [NAMES[name], depth, str(len(runs))]
            for key in ("iou_image", "dice_image", "iou_pixels", "miou"):
                values = np.array([run["depths"][depth][key] for run in runs.values()])
                cells.append(f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""))
            macs = f"{facts['macs'] / 1e6:,.0f} M" if "macs" in facts else ""
            rows.append([*cells, f"{facts['parameters']:,}" if "parameters" in facts else "", macs])
    machines = {run["machine"]["processor"] for runs in results.runs.values() for run in runs.values()}
    losses = [
        f"{NAMES[name]} {np.mean([run['train_loss'] for run in runs.values()]):.3f}"
        for name, runs in results.runs.items()
    ]
    spread = results.seed_sd
    said = f"Seeds of the same network differ by {100 * spread:.1f} points (standard deviation). " if spread else ""
    lines = ["", f"<details><summary>{title(setting)}: every network</summary>", ""]
    lines += [
        f"{len(next(iter(first['depths'].values()))['images'])} test images; {first['epochs']} epochs; "
        f"{', '.join(sorted(machines))}. {said}Training loss at the end: {'; '.join(losses)}."
    ]
    return [*lines, *published(setting, results), "", *markdown(head, rows), "", "</details>"]


def published(setting: Setting, results: Results) -> list[str]:
    """Dice on the nuclei images of the size of which it is published; it follows from an image's IoU."""
    path, row = records.test_of(setting[0]), results.row(DS)
    if setting[0] != "dsb" or row is None:
        return []
    chosen = np.array([one["height"] == one["width"] == PUBLISHED_PX for one in read_rows(path)])
    iou = row.images(list(row.runs))[chosen]
    return [
        f"UNet++ with deep supervision has a mean Dice of {(2 * iou / (1 + iou)).mean():.4f} on the {len(iou)} test "
        f"images of {PUBLISHED_PX}x{PUBLISHED_PX}; the best published are 0.922 to 0.927, on other splits."
    ]


def plot(columns: Mapping[Setting, Results]) -> None:
    """IoU against MACs of every network; the depths that one UNet++ is pruned to are joined by a line."""
    figure, axes = plt.subplots(1, len(columns), figsize=(4.6 * len(columns), 4.6), squeeze=False)
    for axis, (setting, results) in zip(axes.flat, columns.items(), strict=True):
        for number, (name, runs) in enumerate(results.runs.items()):
            heads = [depth for depth in next(iter(runs.values()))["depths"] if depth != MEAN]
            rows = [Row(name, runs, depth) for depth in (heads if name == DS else heads[-1:])]
            values = np.array([row.scores("iou_image") for row in rows])  # (depths, seeds)
            mean = values.mean(axis=1)
            spread = np.stack([mean - values.min(axis=1), values.max(axis=1) - mean])
            macs = [row.scores("macs")[0] / 1e6 for row in rows]
            label = f"{NAMES[name]}, pruned" if name == DS else NAMES[name]
            style = {"fmt": "k.-" if name == DS else "osv^D"[number % 5], "markersize": 5, "capsize": 2, "linewidth": 1}
            axis.errorbar(macs, mean, spread, label=label, **style)
        axis.set(title=", ".join(setting[::2]), xlabel="MACs at 128x128, millions", ylabel="iou_image", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(IMAGES / "paper.png", dpi=100)
    plt.close(figure)


def missing() -> list[str]:
    """The planned runs of study.yaml that have no result yet."""
    counts: dict[Setting, list[bool]] = {}
    for plan in planned(read_study()):
        there = plan.run in records.read(plan.set, plan.recipe)
        counts.setdefault((plan.set, plan.recipe, plan.run.scale), []).append(there)
    found = [
        f"- {title(setting)}: {done.count(False)} of {len(done)} training runs"
        for setting, done in counts.items()
        if not all(done)
    ]
    return found or ["Nothing: every run of study.yaml has been trained."]


def main() -> None:
    results = read_results()
    main_columns = {setting: one for setting, one in results.items() if setting[1] == "ours"}
    parts = {
        "claims": depth_lines({title(setting): one for setting, one in main_columns.items()}),
        "backbones": backbone_lines(next(one for setting, one in results.items() if setting[0] == "pets")),
        "heads": head_lines(results),
        "details": [line for setting, one in results.items() if one.runs for line in details(setting, one)],
        "missing": missing(),
    }
    text = (FOLDER / "page.md").read_text(encoding="utf-8")
    for name, lines in parts.items():
        text = text.replace(f"{{{name}}}", "\n".join(lines).strip())
    OUT.write_text(text, encoding="utf-8")
    if trained := {setting: one for setting, one in main_columns.items() if one.runs}:
        plot(trained)
    print(f"wrote {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
