"""Write docs/paper.md and its plots from studies/paper/results: no number in it is typed by hand.

python -m studies.paper.page
"""

import itertools
import json
from pathlib import Path

import matplotlib
import numpy as np

from studies.paper import records
from studies.paper.run import FOLDER, ROOT, planned, read_study
from studies.paper.tables import Row, Verdict, deepest, summary, table

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
    "unet_e": "UNet^e, deep supervision",
    "unet_plus": "UNet+",
    "unet_plus_ds": "UNet+, deep supervision",
    "unet_pp": "UNet++",
    "unet_pp_ds": "UNet++, deep supervision",
    "unet_pp_L2": "UNet++ L2 alone",
    "unet_pp_L3": "UNet++ L3 alone",
}


def agreement(rows: list[Row]) -> str:
    """How alike networks are wrong: what they do not differ in, no choice among them changes."""
    images = np.array([row.sums / row.patches for row in rows])  # (networks, images)
    together = np.corrcoef(images)[np.triu_indices(len(rows), k=1)]
    mean = images.mean(axis=0)
    low = mean < np.percentile(mean, 10)
    return (
        f"Images differ more than networks do: the IoU of an image by any two of these networks correlates by "
        f"{together.min():.3f} to {together.max():.3f}. The best network for each image, chosen by its mask, would "
        f"reach {images.max(axis=0).mean():.4f}; the tenth of the images that all find hardest has a mean of "
        f"{mean[low].mean():.2f}, the others of {mean[~low].mean():.2f}."
    )


def sections(runs: dict[str, list[dict]], wanted: list[str], cost: dict | None) -> tuple[list[str], list[Verdict]]:
    """The claims for one protocol, recipe and scale: their tables, and what they say.

    A claim whose networks are not to be trained there is left out; one whose networks are missing says so.
    """
    lines: list[str] = []
    verdicts: list[Verdict] = []

    def conclude(claim: str, row: Row, reference: Row) -> None:
        verdicts.append(Verdict(claim, row, reference))
        lines.extend(["", str(verdicts[-1])])

    def rows(title: str, *names: str) -> list[Row] | None:
        if not set(names) <= set(wanted):
            return None
        lines.extend(["", f"**{title}**", ""])
        missing = [name for name in names if name not in runs]
        if missing:
            lines.append(f"Not trained yet: {', '.join(NAMES[name] for name in missing)}.")
            return None
        return [Row(NAMES[name], runs[name], deepest(runs[name])) for name in names]

    if found := rows(
        "1. The optimal depth differs from the deepest: U-Nets trained alone.", "unet_L1", "unet_L2", "unet_L3", "unet"
    ):
        best = max(found[:-1], key=lambda row: row.scores("iou_image").mean())
        lines += table(found, found[-1])
        conclude("A shallower U-Net, the best of them, is better than L4", best, found[-1])
    family = ["unet", "unet_wide", "unet_e", "unet_plus", "unet_plus_ds", "unet_pp", "unet_pp_ds"]
    family = [name for name in family if name in wanted]
    if len(family) > 1 and (
        found := rows("2. The family at equal widths, beside the U-Net and the wide U-Net.", *family)
    ):
        by_name = dict(zip(family, found, strict=True))
        lines += table(found, found[0])
        for claim, name, other in (
            ("UNet++ with deep supervision is better than U-Net", "unet_pp_ds", "unet"),
            ("UNet++ with deep supervision is better than the wide U-Net", "unet_pp_ds", "unet_wide"),
            ("UNet++ with deep supervision is better than UNet+ with it", "unet_pp_ds", "unet_plus_ds"),
            ("UNet++ is better with deep supervision than without", "unet_pp_ds", "unet_pp"),
        ):
            if {name, other} <= by_name.keys():
                conclude(claim, by_name[name], by_name[other])
        lines += ["", agreement(found)]
    if found := rows("3. Pruning: the depths of one trained UNet++.", "unet_pp_ds"):
        depths = [name for name in found[0].runs[0]["depths"] if name != "mean"]
        pruned = [Row(f"pruned to {name}", runs["unet_pp_ds"], name) for name in depths]
        lines += table(pruned, pruned[-1], cost)
        if cost and len(depths) > 3:
            shares = {key: 100 * (1 - cost["L3"][key] / cost["L4"][key]) for key in ("parameters", "peak_memory_mib")}
            lines += [
                "",
                f"At L3 {shares['parameters']:.1f} % of the parameters are saved (the paper's figure for memory is "
                f"75.6 %), and {shares['peak_memory_mib']:.1f} % of the measured peak memory of a forward pass.",
            ]
    if found := rows(
        "4. Embedded against isolated: L_d pruned out of L4 against L_d trained alone.",
        "unet_pp_ds",
        "unet_L1",
        "unet_pp_L2",
        "unet_pp_L3",
    ):
        for depth, alone in zip(("L1", "L2", "L3"), found[1:], strict=True):
            alone = Row(f"{depth} trained alone", alone.runs, depth)
            embedded = Row(f"{depth} pruned out of L4", runs["unet_pp_ds"], depth)
            lines += table([alone, embedded], alone)
            conclude(f"{depth} is better for having been trained inside L4", embedded, alone)
            lines += [""]
    if found := rows("5. Heads: each head, and the mean of all.", "unet_pp_ds"):
        depths = [name for name in found[0].runs[0]["depths"] if name != "mean"]
        heads = [Row(f"head {name}", runs["unet_pp_ds"], name) for name in depths]
        mean = Row("mean of the heads", runs["unet_pp_ds"], "mean")
        single = [
            Row(f"{NAMES[name]}, one head", runs[name], deepest(runs[name])) for name in ("unet_pp",) if name in runs
        ]
        lines += table([*heads, mean, *single], heads[-1])
        conclude("The mean of the heads is better than the deepest head", mean, heads[-1])
    return lines, verdicts


def kinds(whole: dict[tuple[str, ...], dict[str, list[dict]]]) -> list[str]:
    """Where the IoU is lost: each setting's UNet++ by kind of image, beside the best threshold of each image."""
    lines: list[str] = []
    for protocol in dict.fromkeys(setting[0] for setting in whole):
        facts = records.read_test(protocol)
        if facts is None:
            continue
        of, names = np.array(facts[0]), sorted(set(facts[0]))
        rows = {"the best threshold of each image, by its mask": np.array(facts[1])}
        for (other, recipe, scale), runs in whole.items():
            if other == protocol:
                name = "unet_pp_ds" if "unet_pp_ds" in runs else next(iter(runs))
                rows[f"{NAMES[name]}, `{recipe}`, {scale}"] = Row("", runs[name], deepest(runs[name])).images
        lines += ["", f"**`{protocol}`**", ""]
        lines.append("| | all | " + " | ".join(f"{name} ({np.sum(of == name)})" for name in names) + " |")
        lines.append("| :-- | --: |" + " --: |" * len(names))
        for label, ious in rows.items():
            cells = [f"{ious.mean():.4f}", *(f"{ious[of == name].mean():.3f}" for name in names)]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines and ["", "## By kind of image: iou_image", *lines]


def recipes(whole: dict[tuple[str, ...], dict[str, list[dict]]]) -> list[str]:
    """Networks that were trained by several recipes or widths of one protocol, beside one another."""
    lines: list[str] = []
    for protocol in dict.fromkeys(setting[0] for setting in whole):
        settings = {setting: runs for setting, runs in whole.items() if setting[0] == protocol}
        for name in dict.fromkeys(itertools.chain.from_iterable(settings.values())):
            rows = [
                Row(f"`{recipe}`, {scale} widths", runs[name], deepest(runs[name]))
                for (_, recipe, scale), runs in settings.items()
                if name in runs
            ]
            if len(rows) > 1:
                lines += ["", f"**{NAMES[name]}, `{protocol}`**", "", *table(rows, rows[0])]
    return lines and ["", "## Recipes and widths beside one another", *lines]


def splits(results: dict[tuple[str, ...], dict[str, list[dict]]]) -> list[str]:
    """The same training on other fifths of the images: protocols `name_2`, `name_3` ... beside `name`."""
    groups: dict[tuple[str, str, str, str], list[tuple[str, list[dict]]]] = {}
    for (protocol, recipe, scale), by_name in results.items():
        for name, runs in by_name.items():
            groups.setdefault((protocol.split("_")[0], recipe, scale, name), []).append((protocol, runs))
    lines: list[str] = []
    for (_, recipe, scale, name), found in groups.items():
        if len(found) < 2:
            continue
        rows = [(protocol, Row(NAMES[name], runs, deepest(runs))) for protocol, runs in found]
        means = np.array([row.scores("iou_image").mean() for _, row in rows])
        lines += ["", f"**{NAMES[name]}, recipe `{recipe}`, {scale} widths**", ""]
        lines += ["| split | seeds | test images | iou_image | standard error over the images |"]
        lines += ["| :-- | --: | --: | --: | --: |"]
        for (protocol, row), mean in zip(rows, means, strict=True):
            images = row.images
            error = images.std(ddof=1) / np.sqrt(len(images))
            lines.append(f"| `{protocol}` | {len(row.runs)} | {len(images)} | {mean:.4f} | {error:.4f} |")
        lines += ["", f"Over {len(means)} splits: {means.mean():.4f} ± {means.std(ddof=1):.4f}."]
    return lines and ["", "## How much the split matters", *lines]


def plot(by_setting: dict[tuple[str, ...], dict[str, list[dict]]], path: Path) -> None:
    """IoU against MACs of every network, one panel a setting; whiskers are the range over the seeds.

    The depths that one UNet++ is pruned to are joined by a line.
    """
    columns = min(2, len(by_setting))
    lines = -(-len(by_setting) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(7.2 * columns, 4.2 * lines), squeeze=False)
    for axis in axes.flat[len(by_setting) :]:
        axis.remove()
    for axis, (setting, runs) in zip(axes.flat, by_setting.items(), strict=False):
        for number, (name, found) in enumerate(runs.items()):
            heads = [depth for depth in found[0]["depths"] if depth != "mean"]
            joined = name == "unet_pp_ds"
            rows = [Row("", found, depth) for depth in (heads if joined else heads[-1:])]
            values = np.array([row.scores("iou_image") for row in rows])  # (depths, seeds)
            mean = values.mean(axis=1)
            spread = np.stack([mean - values.min(axis=1), values.max(axis=1) - mean])
            macs = [found[0]["depths"][row.depth]["macs"] / 1e6 for row in rows]
            label = f"{NAMES[name]}, pruned to {heads[0]} ... {heads[-1]}" if joined else NAMES[name]
            style = {"fmt": "k.-" if joined else "osv^D"[number % 5], "markersize": 5, "capsize": 2, "linewidth": 1}
            axis.errorbar(macs, mean, spread, label=label, **style)
        axis.set(title=", ".join(setting), xlabel="MACs at 96x96, millions", ylabel="iou_image on test", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def read_results() -> dict[tuple[str, ...], tuple[dict[str, list[dict]], list[str]]]:
    """Of each (protocol, recipe, scale): the results by network, the seeds in order, and the networks to be trained."""
    study = read_study()
    found = {}
    for run in study["runs"]:
        setting = (run["protocol"], run["recipe"], run["scale"])
        there = records.read(run["protocol"], run["recipe"])
        wanted, by_name = run["networks"] or list(study["networks"]), {}
        for name in wanted:
            keys = [records.Run(run["scale"], name, seed) for seed in study["seeds"]]
            if runs := [there[key] for key in keys if key in there]:
                by_name[name] = runs
        if by_name:
            found[setting] = by_name, wanted
    return found


def missing() -> list[str]:
    """What study.yaml plans and nobody has trained yet."""
    study = read_study()
    tables = {(run["protocol"], run["recipe"]): records.read(run["protocol"], run["recipe"]) for run in study["runs"]}
    counts: dict[tuple[str, ...], list[bool]] = {}
    for protocol, recipe, scale, _, seed, name in planned(study, study["seeds"]):
        there = records.Run(scale, name, seed) in tables[protocol, recipe]
        counts.setdefault((protocol, recipe, scale), []).append(there)
    lines = [
        f"- protocol `{protocol}`, recipe `{recipe}`, {scale} widths: {found.count(False)} of {len(found)} trainings"
        for (protocol, recipe, scale), found in counts.items()
        if not all(found)
    ]
    return lines and ["", "## Planned and not trained yet", "", *lines]


def main() -> None:
    results = read_results()
    template = (FOLDER / "page.md").read_text(encoding="utf-8")
    body: list[str] = []
    verdicts: dict[tuple[str, ...], list[Verdict]] = {}
    whole = {setting: found for setting, found in results.items() if "_" not in setting[0]}
    rims = {
        setting[0]: run["rim_share"]
        for setting, (runs, _) in whole.items()
        for run in itertools.chain.from_iterable(runs.values())
        if "rim_share" in run
    }
    for (protocol, recipe, scale), (runs, wanted) in whole.items():
        first = next(iter(runs.values()))[0]
        machines = {
            f"{run['machine']['device']} ({run['machine']['processor']})" for each in runs.values() for run in each
        }
        patches = first.get("patches", [])
        count = str(len(patches or next(iter(first["images"].values()))))
        if sum(patches) > len(patches):
            count = f"{sum(patches)} patches of {count}"
        body += ["", f"## `{protocol}`, recipe `{recipe}`, {scale} widths", ""]
        body += [f"{count} test images; {first['epochs']} epochs; trained on {'; '.join(sorted(machines))}."]
        losses = [f"{NAMES[name]} {np.mean([run['train_loss'] for run in found]):.3f}" for name, found in runs.items()]
        body += [f"Training loss at the end: {'; '.join(losses)}."]
        if share := rims.get(protocol):
            body += [f"{100 * share:.0f} % of the foreground's pixels in the test masks touch background."]
        path = records.RESULTS / f"cost-{scale}.json"
        cost = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if cost:
            on = cost["machine"]
            body += [f"Latency and memory: {on['processor']}, {on['threads']} threads, {on['precision']}, one image."]
        lines, verdicts[(protocol, recipe, scale)] = sections(runs, wanted, cost and cost["depths"])
        body += lines
    body += recipes({setting: runs for setting, (runs, _) in whole.items()})
    body += kinds({setting: runs for setting, (runs, _) in whole.items()})
    body += splits({setting: runs for setting, (runs, _) in results.items()})
    body += missing()
    if whole:
        plot({setting: runs for setting, (runs, _) in whole.items()}, IMAGES / "paper.png")
    text = template.replace("{summary}", "\n".join(summary(verdicts))).rstrip()
    OUT.write_text(text + "\n" + "\n".join(body) + "\n", encoding="utf-8")
    print(f"wrote {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
