"""The study's comparisons: what a paired comparison over the test images, and over seeds, says of two networks."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.bootstrap import bootstrap, interval

NOT_TRAINED = "not decided (not trained)"
MEAN = "mean"


@dataclass(frozen=True)
class Row:
    """A network at one depth, or the mean of its heads: its runs by seed."""

    network: str
    runs: dict[int, dict]
    depth: str

    def scores(self, key: str) -> np.ndarray:
        """(seeds,) of a score."""
        return np.array([run["depths"][self.depth][key] for run in self.runs.values()])

    def images(self, seeds: list[int]) -> np.ndarray:
        """(images,) foreground IoU, mean over these seeds."""
        return np.mean([self.runs[seed]["depths"][self.depth]["images"] for seed in seeds], axis=0)


@dataclass(frozen=True)
class Results:
    """The runs of a set, recipe and scale by network and seed.

    Args:
        block: so many test images in succession are drawn together.
    """

    runs: dict[str, dict[int, dict]]
    block: int = 1

    def row(self, network: str, depth: str | None = None) -> Row | None:
        """A network that was trained, at a depth that it has; by default at its deepest."""
        runs = self.runs.get(network)
        if not runs:
            return None
        found = list(next(iter(runs.values()))["depths"])
        depth = depth or [name for name in found if name != MEAN][-1]
        return Row(network, runs, depth) if depth in found else None

    @property
    def seed_sd(self) -> float | None:
        """Standard deviation of iou_image between seeds, pooled over the networks that have several."""
        rows = [row.scores("iou_image") for row in map(self.row, self.runs) if row and len(row.runs) > 1]
        if not rows:
            return None
        return float(np.sqrt(sum(((one - one.mean()) ** 2).sum() for one in rows) / sum(len(one) - 1 for one in rows)))

    def compare(self, row: Row | None, other: Row | None) -> "Difference | None":
        """Paired over the test images, each the mean over the seeds that both have; None where there is none."""
        seeds = sorted(row.runs.keys() & other.runs.keys()) if row and other else []
        if not row or not other or not seeds:
            return None
        ours, theirs = row.images(seeds), other.images(seeds)
        groups = [f"{index // self.block}" for index in range(len(ours))]
        means = bootstrap({"ours": ours, "theirs": theirs}, groups)
        mean, (low, high) = float((ours - theirs).mean()), interval(means["ours"] - means["theirs"])
        # Two training runs differ by their seeds, too; two heads of one run do not.
        trained_apart = row.network != other.network
        sd = 1.96 * (self.seed_sd or 0) * np.sqrt(2 / len(seeds)) * trained_apart
        low, high = mean - np.hypot(mean - low, sd), mean + np.hypot(high - mean, sd)
        return Difference(mean, float(low), float(high), len(seeds), trained_apart and self.seed_sd is None)


@dataclass(frozen=True)
class Difference:
    """Of two networks' iou_image, with its 95 % interval."""

    mean: float
    low: float
    high: float
    num_seeds: int
    seeds_unknown: bool  # the interval does not know what another seed would change

    @property
    def found(self) -> str:
        return "holds" if self.low > 0 else "does not" if self.high < 0 else "not decided"

    def __str__(self) -> str:
        points = f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"
        return f"**{self.found}** {points}{'*' * self.seeds_unknown}"


def best_depths(results: Results, networks: list[str]) -> list[str]:
    """Of networks of one depth each, the depths that no other is decidedly better than; none until all are trained."""
    rows = [results.row(name) for name in networks]
    if not all(rows):
        return []
    best = max((row for row in rows if row), key=lambda row: row.scores("iou_image").mean())
    worse = [row for row in rows if row and row is not best and not_as_good(results, row, best)]
    return [row.depth for row in rows if row and row not in worse]


def not_as_good(results: Results, row: Row, best: Row) -> bool:
    found = results.compare(best, row)
    return found is not None and found.found == "holds"


def depths_differ(best: dict[str, list[str]]) -> str:
    """Whether the optimal depth differs between sets, by each set's best depths."""
    known = [set(depths) for depths in best.values() if depths]
    if len(known) < 2:
        return NOT_TRAINED
    if any(not one & other for one in known for other in known):
        return "**holds**"
    return "**does not**" if len(set.union(*known)) == 1 else "**not decided**"


def gains_differ(gains: Mapping[str, Difference | None]) -> str:
    """Whether the largest of the gains on independent sets exceeds the smallest, with the 95 % interval."""
    known = {name: gain for name, gain in gains.items() if gain}
    if len(known) < 2:
        return NOT_TRAINED
    most, least = (chosen(known, key=lambda name: known[name].mean) for chosen in (max, min))
    more, less = known[most], known[least]
    mean = more.mean - less.mean
    low = mean - float(np.hypot(more.mean - more.low, less.high - less.mean))
    high = mean + float(np.hypot(more.high - more.mean, less.mean - less.low))
    unknown = more.seeds_unknown or less.seeds_unknown
    found = Difference(mean, low, high, min(more.num_seeds, less.num_seeds), unknown)
    return f"{found}; {100 * more.mean:+.1f} on {most}, {100 * less.mean:+.1f} on {least}"
