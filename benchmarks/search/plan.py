"""The trainings of the benchmark, in order."""

import itertools

BASES, DEPTH, EPOCHS, LONGER = (4, 8, 12), 4, 6, 10
RATE, RATES = 1.5e-3, (5e-4, 4.5e-3)  # the last for ASHA to choose among


def widths_of(base: int, depth: int) -> list[int]:
    return [base * 2**level for level in range(depth + 1)]


def plan(seeds: int) -> list[dict]:
    """The training runs, the most informative ones first in case time is short."""
    rows = []
    for seed in range(seeds):
        for base in BASES:
            rows.append({"what": "supervised", "base": base, "depth": DEPTH, "seed": seed})
            rows += [{"what": "alone", "base": base, "depth": depth, "seed": seed} for depth in range(1, DEPTH + 1)]
        rows += [{"what": init, "base": BASES[0], "depth": DEPTH, "seed": seed} for init in ("anew", "warm")]
        if seed == 0:
            rows += [
                {"what": "supervised", "base": base, "depth": DEPTH, "seed": seed, "rate": rate}
                for rate, base in itertools.product(RATES, BASES)
            ]
    return rows
