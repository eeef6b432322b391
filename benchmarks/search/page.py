"""The page of the recorded training runs: cost, ranking, ASHA replayed, and warm starts from a trial's weights."""

import heapq
import itertools
from statistics import mean
from types import SimpleNamespace

from scipy.stats import spearmanr

from benchmarks.machine import head
from benchmarks.search.plan import BASES, DEPTH, EPOCHS, LONGER, RATE, RATES, plan

WAYS = ("supervised", "alone")


def best(row: dict) -> dict[str, float]:
    """IoU of each depth at its best epoch."""
    return {depth: max(one[depth] for one in row["curve"]) for depth in row["curve"][0]}


def select(rows: list[dict], **facts) -> list[dict]:
    """The rows with these facts; those of another learning rate only where it is asked for."""
    wanted = [row for row in rows if facts.items() <= row.items()]
    return [row for row in wanted if "rate" in facts or "rate" not in row]


def measured_depths(rows: list[dict], what: str, base: int, seed: int) -> dict[str, float] | None:
    """IoU by depth of one width, as this way of training knows it; None where a run is missing."""
    found: dict[str, float] = {}
    for row in select(rows, what=what, base=base, seed=seed):
        found |= best(row)
    return found if len(found) == DEPTH else None


def whole_bases(rows: list[dict], seed: int) -> list[int]:
    """The widths of which every training of the claim is there with a seed."""
    return [base for base in BASES if all(measured_depths(rows, way, base, seed) for way in WAYS)]


def agree(one: dict[str, float], other: dict[str, float]) -> float:
    """Spearman's rank correlation of two measurements of the same networks."""
    keys = sorted(one)
    return float(spearmanr([one[key] for key in keys], [other[key] for key in keys]).statistic)


def networks(rows: list[dict], what: str, seed: int, bases: list[int]) -> dict[str, float]:
    """IoU of all networks of some widths."""
    return {
        f"{base} {depth}": iou
        for base in bases
        for depth, iou in (measured_depths(rows, what, base, seed) or {}).items()
    }


def claim(rows: list[dict], seeds: list[int]) -> list[str]:
    """Cost and ranking of the two ways, as lines of the page."""
    lines = ["| seed | base widths | supervised, CPU s | each depth alone, CPU s | times |"]
    lines += ["| --- | --- | ---: | ---: | ---: |"]
    for seed in seeds:
        bases = whole_bases(rows, seed)
        spent = [
            sum(row["cpu_s"][-1] for base in bases for row in select(rows, what=way, seed=seed, base=base))
            for way in WAYS
        ]
        said = ", ".join(map(str, bases))
        lines.append(f"| {seed} | {said} | {spent[0]:.0f} | {spent[1]:.0f} | {spent[1] / spent[0]:.2f} |")
    lines += ["", "Val IoU at the best epoch (supervised / alone):", ""]
    depths = [f"L{depth}" for depth in range(1, DEPTH + 1)]
    lines += [f"| seed, base width | {' | '.join(depths)} |", "| --- |" + " ---: |" * DEPTH]
    for seed in seeds:
        for base in whole_bases(rows, seed):
            both = [measured_depths(rows, way, base, seed) or {} for way in WAYS]
            cells = [" / ".join(f"{one[depth]:.3f}" for one in both) for depth in depths]
            lines.append(f"| {seed}, {base} | {' | '.join(cells)} |")
    lines += ["", "Spearman's rank correlation; two seeds of one way say how much of a disagreement is noise:", ""]
    lines += ["| compared | of the four depths, by width | of all networks |", "| --- | ---: | ---: |"]
    pairs = [(f"supervised and alone, seed {seed}", (WAYS[0], seed), (WAYS[1], seed)) for seed in seeds]
    for way in WAYS:
        pairs += [(f"{way}, seeds {a} and {b}", (way, a), (way, b)) for a, b in itertools.combinations(seeds, 2)]
    for said, one, other in pairs:
        bases = [base for base in whole_bases(rows, one[1]) if base in whole_bases(rows, other[1])]
        by_width = [f"{agree(networks(rows, *one, [base]), networks(rows, *other, [base])):.2f}" for base in bases]
        lines.append(
            f"| {said} | {', '.join(by_width)} | "
            f"{agree(networks(rows, *one, bases), networks(rows, *other, bases)):.2f} |"
        )
    return lines


def summary(rows: list[dict], seeds: list[int]) -> list[str]:
    """What the tables say, as lines of the page."""
    times = [
        sum(row["cpu_s"][-1] for base in BASES for row in select(rows, what="alone", seed=seed, base=base))
        / sum(row["cpu_s"][-1] for base in BASES for row in select(rows, what="supervised", seed=seed, base=base))
        for seed in seeds
    ]
    ways = {way: [networks(rows, way, seed, whole_bases(rows, seed)) for seed in seeds] for way in WAYS}
    across = [agree(one, other) for one, other in zip(*ways.values(), strict=True)]
    again = [agree(one, other) for one, other in itertools.combinations(ways["alone"], 2)]
    return [
        f"One deeply supervised run per width costs {mean(times):.1f} times less than a run for each depth.",
        f"Its ranking of all the networks agrees with theirs by {mean(across):.2f} ({min(across):.2f} to",
        f"{max(across):.2f}); theirs agrees with itself, from one seed to another, by {mean(again):.2f}",
        f"({min(again):.2f} to {max(again):.2f}). Among the four depths of one width, so shortly trained, neither",
        "says much: two seeds of one way rank them about as differently as the two ways do.",
        "",
    ]


def replay_asha(rows: list[dict], reduction: int, at_once: int = 2) -> dict:
    """When Ray's own ASHA would have stopped each of the recorded runs, had they run `at_once` at a time."""
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler("epoch", "best", "max", max_t=EPOCHS, grace_period=1, reduction_factor=reduction)
    trials = [SimpleNamespace(trial_id=str(number)) for number in range(len(rows))]
    queue, running, ran = list(range(len(rows))), [], [0] * len(rows)

    def start(now: float) -> None:
        if queue:
            number = queue.pop(0)
            scheduler.on_trial_add(None, trials[number])
            heapq.heappush(running, (now + rows[number]["cpu_s"][0], number, now))

    for _ in range(at_once):
        start(0.0)
    while running:
        now, number, began = heapq.heappop(running)
        ran[number] += 1
        seen = rows[number]["curve"][: ran[number]]
        result = {"epoch": ran[number], "best": max(max(one.values()) for one in seen)}
        decision = scheduler.on_trial_result(None, trials[number], result)
        if ran[number] < EPOCHS and decision == "CONTINUE":
            heapq.heappush(running, (began + rows[number]["cpu_s"][ran[number]], number, began))
        else:
            start(now)
    cost = sum(row["cpu_s"][num - 1] for row, num in zip(rows, ran, strict=True))
    whole = [max(best(row).values()) for row in rows]
    found = [max(max(one.values()) for one in row["curve"][:num]) for row, num in zip(rows, ran, strict=True)]
    chosen = found.index(max(found))
    return {
        "cpu_s": cost,
        "all_s": sum(row["cpu_s"][-1] for row in rows),
        "ended": sum(num < EPOCHS for num in ran),
        "loss": max(whole) - whole[chosen],
    }


def asha(rows: list[dict]) -> list[str]:
    """ASHA's saving on top, as lines of the page."""
    trials = [
        row for row in rows if row["what"] == "supervised" and row["seed"] == 0 and row["depth"] == DEPTH
    ]  # three widths at three learning rates
    if len(trials) < len(BASES) * (1 + len(RATES)):
        return [
            f"{len(trials)} of {len(BASES) * (1 + len(RATES))} training runs are done; rerunning the command continues."
        ]
    lines = ["| reduction | CPU s | of | share | ended early | val IoU lost by the choice |"]
    lines.append("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for reduction in (2, 3):
        said = replay_asha(trials, reduction)
        lines.append(
            f"| {reduction} | {said['cpu_s']:.0f} | {said['all_s']:.0f} | {said['cpu_s'] / said['all_s']:.0%} | "
            f"{said['ended']} of {len(trials)} | {said['loss']:.4f} |"
        )
    return lines


def init(rows: list[dict]) -> list[str]:
    """Training anew against training from the trial's weights, as lines of the page."""
    if not any(row["what"] == "warm" for row in rows):
        return ["Not there yet."]
    lines = ["| seed | begins | val IoU after 2 epochs | after 5 | best of 10 |", "| --- | --- | ---: | ---: | ---: |"]
    for row in sorted((row for row in rows if row["what"] in ("anew", "warm")), key=lambda one: one["seed"]):
        means = [mean(one.values()) for one in row["curve"]]
        begins = "anew" if row["what"] == "anew" else "with the trial's weights"
        lines.append(f"| {row['seed']} | {begins} | {means[1]:.3f} | {means[4]:.3f} | {max(means):.3f} |")
    lines += ["", "The trial is paid for by then, so that the better of the two is the default of `train.init`."]
    return lines


def build_page(results: dict) -> str:
    rows = results["rows"]
    seeds = [seed for seed in sorted({row["seed"] for row in rows}) if whole_bases(rows, seed)]
    machines = " ".join(sorted({row["machine"] for row in rows}))
    command = "python -m benchmarks.search --data /path/to/dsb2018 --out benchmarks/search.md"
    parts = [
        *head("Depth for nothing", command, machines),
        f"DSB2018 at 96x96 (383 images to train on, 54 to validate), base widths {', '.join(map(str, BASES))}, doubled",
        f"by level, depth {DEPTH}, {EPOCHS} epochs of the shipped params at learning rate {RATE:g}. Alone: the network",
        "of a depth with its one head. CPU seconds of one process with one thread, on a machine that others used.",
        f"{len(rows)} of {len(plan(3))} training runs are done; rerunning the command continues with the rest, and",
        "missing results are not claimed.",
        "",
        *(summary(rows, seeds) if len(seeds) > 1 else []),
        "## To know the accuracy of depths 1 to 4 at three widths",
        "",
        *(claim(rows, seeds) if seeds else ["No width is whole yet."]),
        "",
        "## ASHA on top",
        "",
        "Nine supervised runs, three widths at three learning rates, replayed from their records through Ray's",
        "own ASHA, two at a time, grace of one epoch, the best depth so far compared:",
        "",
        *asha(rows),
        "",
        "## Train from the trial's weights, or anew",
        "",
        f"Base width {BASES[0]}, depth {DEPTH}, {LONGER} epochs; the trial had {EPOCHS}. Val IoU, mean of the depths:",
        "",
        *init(rows),
        "",
    ]
    return "\n".join(parts)
