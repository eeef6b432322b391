"""How deep and wide a network is planned, and what a training step of it holds."""

from collections.abc import Mapping
from typing import Any

import torch

from pipelines.planning.facts import Facts
from unetpp.network.model import NestedUNet
from unetpp.network.profiling import estimate_training_mib

PAPER_DEPTH, PAPER_WIDTH = 4, 32  # UNet++ (Zhou et al. 2018): L4, 32 channels that each level doubles
LEAST_CELLS = 4  # a side of the deepest level has at least so many pixels (nnU-Net, Isensee et al. 2021)

Chosen = Mapping[str, Any]


def suggest_depth(facts: Facts, side_px: float) -> tuple[int, str]:
    """The depth to train, and why. Sizes of objects say little of it: a deep network has the shallow ones in it, and
    the depth report measures each of them. On road scenes L4 beats L1 by 14 points of IoU, on photographs of pets by
    18, on nuclei by none (benchmarks/plan.md). So 4, the paper's, but where a coarsest pixel would hold several objects
    or fewer than `LEAST_CELLS` of them fit on a side."""
    depth, why = PAPER_DEPTH, "surroundings decide at several classes and large objects"
    if not facts.by_context:
        why = "sizes alone do not say which depth is enough"
        while facts.width_px and depth > 2 and 2 ** (depth - 1) > facts.width_px:
            depth -= 1
            why = f"what is looked for is {facts.width_px:.0f} px wide, a fraction of a pixel of a deeper level"
    while depth > 1 and LEAST_CELLS * 2**depth > side_px:
        depth -= 1
        why = f"a deeper level would have fewer than {LEAST_CELLS} px a side"
    return depth, f"{why}; the report says for each depth of the family what it is worth"


def seen_px(chosen: Chosen) -> int:
    """The shorter side of what the network is trained on."""
    side = chosen["train.crop_px"] or chosen["prepare.size"]
    return min(side) if isinstance(side, list | tuple) else side


def seen_area(chosen: Chosen) -> float:
    """Pixels of what the network is trained on."""
    side = chosen["train.crop_px"] or chosen["prepare.size"]
    return float(side[0] * side[1]) if isinstance(side, list | tuple) else float(side) ** 2


def widths_of(depth: int, base: int = PAPER_WIDTH) -> list[int]:
    """Channels by level, each level twice the one above."""
    return [base * 2**level for level in range(depth + 1)]


def training_mib(widths: list[int], batch: int, area: float) -> float:
    with torch.device("meta"):  # no weights are made
        network = NestedUNet(widths)
    return estimate_training_mib(network, batch, round(area**0.5))
