"""The study's tables: scores of networks over seeds, and what a paired comparison over the test images says."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

RESAMPLES = 5000


@dataclass(frozen=True)
class Row:
    """A network at one depth (or the mean of its heads), trained with several seeds."""

    label: str
    runs: list[dict]  # of the seeds, by seed
    depth: str  # L1 ... or mean

    def scores(self, key: str) -> np.ndarray:
        """(seeds,) of a score."""
        return np.array([run["depths"][self.depth][key] for run in self.runs])

    @property
    def images(self) -> np.ndarray:
        """(images,) foreground IoU, mean over the seeds; in protocol `patches` of each patch."""
        return np.mean([run["images"][self.depth] for run in self.runs], axis=0)

    @property
    def patches(self) -> np.ndarray:
        """(images,) how many of `images` in succession are patches of one image: they are not independent."""
        return np.array(self.runs[0].get("patches") or [1] * len(self.images))

    @property
    def sums(self) -> np.ndarray:
        """(images,) foreground IoU, the sum over the image's patches."""
        return np.add.reduceat(self.images, np.cumsum(self.patches) - self.patches)


def deepest(runs: list[dict]) -> str:
    """The name of the deepest head."""
    return max((name for name in runs[0]["depths"] if name != "mean"), key=lambda name: int(name[1:]))


def difference(row: Row, reference: Row) -> tuple[float, float, float, float]:
    """Mean paired difference of the images' IoU (over the seeds' means), its 95 % bootstrap interval, and the
    p-value of Wilcoxon's signed-rank test, two-sided.

    What is drawn, and what the test ranks, are images: all patches of one together.
    """
    sums, patches = row.sums - reference.sums, row.patches
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / patches[drawn].sum(axis=1), [2.5, 97.5])
    p = wilcoxon(sums / patches).pvalue if np.any(sums) else 1.0
    return float(sums.sum() / patches.sum()), float(low), float(high), float(p)


def table(rows: list[Row], reference: Row, cost: dict | None = None) -> list[str]:
    """Markdown of the rows, each against the reference."""
    head = ["network", "seeds", "iou_image", "iou_pixels", "iou_paper", "parameters", "MACs at 96x96"]
    head += ["latency ms", "peak MiB"] if cost else []
    head += [f"iou_image against {reference.label}, points (95 % interval)", "p"]
    lines = ["| " + " | ".join(head) + " |", "| :-- |" + " --: |" * (len(head) - 1)]
    for row in rows:
        cells = [row.label, str(len(row.runs))]
        for key in ("iou_image", "iou_pixels", "iou_paper"):
            values = row.scores(key)
            spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.4f}{spread}")
        facts = row.runs[0]["depths"][row.depth if row.depth != "mean" else deepest(row.runs)]
        cells += [f"{facts['parameters']:,}", f"{facts['macs'] / 1e6:,.0f} M"]
        if cost:
            found = cost[row.depth]
            cells += [f"{found['latency_ms']:.1f}", f"{found['peak_memory_mib']:.1f}"]
        if row is reference:
            cells += ["", ""]
        else:
            mean, low, high, p = difference(row, reference)
            cells += [f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})", f"{p:.2g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


@dataclass(frozen=True)
class Verdict:
    """Whether a row is better than a reference on these data, by the interval of the paired difference."""

    claim: str
    row: Row
    reference: Row

    @property
    def found(self) -> str:
        _, low, high, _ = difference(self.row, self.reference)
        return "holds" if low > 0 else "the opposite holds" if high < 0 else "not decided"

    def __str__(self) -> str:
        mean, low, high, _ = difference(self.row, self.reference)
        return f"{self.claim}: **{self.found}** ({100 * mean:+.2f} points, {100 * low:+.2f} to {100 * high:+.2f})."

    @property
    def cell(self) -> str:
        return f"{self.found} ({100 * difference(self.row, self.reference)[0]:+.2f})"


def summary(verdicts: dict[tuple[str, ...], list[Verdict]]) -> list[str]:
    """A row for each claim, a column for each setting in which it was tested."""
    settings = [setting for setting, found in verdicts.items() if found]
    claims = dict.fromkeys(verdict.claim for found in verdicts.values() for verdict in found)
    lines = ["| claim | " + " | ".join(f"`{p}`, `{recipe}`, {scale}" for p, recipe, scale in settings) + " |"]
    lines += ["| :-- |" + " :-- |" * len(settings)]
    for claim in claims:
        cells = [[one.cell for one in verdicts[setting] if one.claim == claim] for setting in settings]
        lines.append(f"| {claim} | " + " | ".join(found[0] if found else "" for found in cells) + " |")
    return lines
