"""Depth and width of the planned network, and the memory of a training step."""

from collections.abc import Mapping
from typing import Any

import torch

from pipelines.planning.facts import Facts
from unetpp.network.model import NestedUNet
from unetpp.network.profiling import estimate_training_mib

PAPER_DEPTH, PAPER_WIDTH = 4, 32  # UNet++ (Zhou et al. 2018): L4, 32 channels that each level doubles
LEAST_CELLS = 4  # fewest pixels on a side of the deepest level (nnU-Net, Isensee et al. 2021)

Chosen = Mapping[str, Any]


def suggest_depth(facts: Facts, side_px: float) -> tuple[int, str]:
    """The depth to train, and why. Object sizes say little about it: a deep network contains the shallow ones, and the
    depth report measures each of them. On road scenes L4 beats L1 by 14 points of IoU, on photographs of pets by
    18, on nuclei by none (benchmarks/plan.md). So 4, as in the paper, unless a pixel of the deepest level would
    cover several objects, or fewer than `LEAST_CELLS` pixels would remain on a side."""
    depth, why = PAPER_DEPTH, "context matters with several classes or large objects"
    if not facts.by_context:
        why = "object sizes alone do not tell which depth suffices"
        while facts.width_px and depth > 2 and 2 ** (depth - 1) > facts.width_px:
            depth -= 1
            why = f"objects are {facts.width_px:.0f} px wide, a fraction of a pixel at deeper levels"
    while depth > 1 and LEAST_CELLS * 2**depth > side_px:
        depth -= 1
        why = f"a deeper level would have fewer than {LEAST_CELLS} px per side"
    return depth, f"{why}; the report measures every depth up to it"


def seen_px(chosen: Chosen) -> int:
    """The shorter side of a training image."""
    side = chosen["train.crop_px"] or chosen["prepare.size"]
    return min(side) if isinstance(side, list | tuple) else side


def seen_area(chosen: Chosen) -> float:
    """Pixels of a training image."""
    side = chosen["train.crop_px"] or chosen["prepare.size"]
    return float(side[0] * side[1]) if isinstance(side, list | tuple) else float(side) ** 2


def widths_of(depth: int, base: int = PAPER_WIDTH) -> list[int]:
    """Channels by level, each level twice the one above."""
    return [base * 2**level for level in range(depth + 1)]


def training_mib(widths: list[int], batch: int, area: float) -> float:
    with torch.device("meta"):  # allocates no weights
        network = NestedUNet(widths)
    return estimate_training_mib(network, batch, round(area**0.5))
