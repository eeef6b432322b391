"""The settings with which each depth of a trained network separates objects, chosen on val at the end of training."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from unetpp.data.targets import number_objects
from unetpp.engines.torch_engine import TorchEngine
from unetpp.inference.instances import choose_separation
from unetpp.inference.tiles import predict_image
from unetpp.models.model_file import Trained
from unetpp.network.masks import IGNORE

MOST_IMAGES, MOST_PX = 64, 2**26  # at most, spread evenly over val


def choose_separations(trained: Trained, val, device: torch.device | None = None) -> Mapping[str, dict[str, Any]]:
    """The settings that `About.separation` reads, by the name of the depth.

    Args:
        val: a split, preferably at the images' own sizes, at which prediction separates objects.
    """
    area = int(np.median([np.prod(val[index][1].shape) for index in _spread(len(val), MOST_IMAGES)] or [1]))
    chosen = _spread(len(val), min(MOST_IMAGES, max(1, MOST_PX // area)))
    num_classes, _, background = trained.network.task

    def answers(engine: TorchEngine) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index in chosen:
            image, mask = val[index]
            numbers = val.instances(index)
            numbers = number_objects(mask, background) if numbers is None else numbers.astype(np.int64)
            unknown = (mask == IGNORE) | ((mask > 0) & (numbers == 0))
            yield predict_image(engine, image), np.where(unknown, -1, numbers)

    found = {}
    for depth in trained.depths:
        engine = TorchEngine(trained.segmenter(depth), trained.about.at(depth), device)
        found[f"L{depth}"] = asdict(choose_separation(answers(engine), num_classes, background=background))
    return found


def _spread(num: int, most: int) -> list[int]:
    """At most `most` of `num` indices, evenly spread."""
    return [place * num // min(num, most) for place in range(min(num, most))]
