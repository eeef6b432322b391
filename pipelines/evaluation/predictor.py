"""The predictions of every depth for a batch of images, as `unetpp predict` makes them, in one pass if possible."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.console.progress import watched
from unetpp.data.arrow_split import Split
from unetpp.data.resized import Resized
from unetpp.engines.torch_engine import TorchEngine
from unetpp.images.frame import Size
from unetpp.inference.instances import separate
from unetpp.inference.tiles import TILE_PX, predict_resized, to_own_size
from unetpp.models.model_file import Trained
from unetpp.models.segmenter import Segmenter
from unetpp.network.masks import to_mask, to_probs

MEAN = "mean"  # the name of the ensemble: the mean of the probabilities of all heads
BATCH_PIXELS = 2**19  # at most, of the images predicted together; large ones are predicted one by one


class Heads(Segmenter):
    """A segmenter with the probabilities of every head, shallowest first: (N, num_heads * num_outputs, H, W)."""

    def probs(self, standardised: Tensor, canvas: Size | None = None) -> Tensor:
        height, width = standardised.shape[-2:]
        logits = self.heads(standardised, canvas)
        probs = torch.cat([to_probs(one, *self.network.task[:2]) for one in logits], dim=1)
        return F.pad(probs, (0, width - probs.shape[-1], 0, height - probs.shape[-2]))


class Answer(NamedTuple):
    """The prediction of one depth, or the mean, for N images of one size; on the CPU."""

    name: str
    seen: Tensor  # (N, num_outputs, h, w) probabilities at the size that the network sees
    probs: Tensor  # (N, num_outputs, H, W) at the images' own size, as `unetpp predict` delivers them


class Predictor:
    """Probabilities or masks of every depth; with several depths, of their mean too."""

    def __init__(self, trained: Trained, device: torch.device):
        self.heads = Heads(trained.network, canvas=trained.about.canvas).eval().to(device)
        self._engine = TorchEngine(self.heads, trained.about, device)
        self.trained, self.frame, self.device = trained, trained.frame, device
        self.names = [f"L{depth}" for depth in trained.depths] + [MEAN] * (len(trained.depths) > 1)

    @property
    def task(self) -> tuple[int, bool, bool]:
        """num_classes, multilabel and background, as unetpp.network.masks expects them."""
        return self.heads.network.task

    def answers(self, images: Sequence[np.ndarray]) -> Iterator[Answer]:
        """The prediction of each name for (H, W, C) images of one size.

        A pruned network pads to a smaller multiple, and uses other tiles: if the images need either, each depth is run
        on its own.
        """
        seen = self._named(torch.from_numpy(predict_resized(self._engine, images)))
        sides = self.frame.size if self.frame else images[0].shape[:2]
        if max(sides) > TILE_PX or any(side % 2**self.heads.network.depth for side in sides):
            for depth, engine in self._pruned.items():
                seen[f"L{depth}"] = torch.from_numpy(predict_resized(engine, images))
        for name, probs in seen.items():
            yield Answer(name, probs, torch.from_numpy(to_own_size(probs.numpy(), images[0].shape[:2])))

    def masks_of(self, images: Tensor) -> dict[str, Tensor]:
        """The (N, H, W) masks of each name for (N, C, H, W) images in [0, 1], at the size that the network sees."""
        with torch.inference_mode():
            probs = self._named(self.heads(images.to(self.device)))
        return {name: to_mask(each.cpu(), *self.task[:2]) for name, each in probs.items()}

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The (N, H, W) uint8 masks of each name, at their own size, for (H, W, C) images of one size."""
        return {answer.name: to_mask(answer.probs, *self.task[:2]) for answer in self.answers(images)}

    def numbers(self, answer: Answer) -> list[np.ndarray | None]:
        """The numbered objects of each image, (H, W) from 1 on; None if the network does not separate objects."""
        depth = None if answer.name == MEAN else int(answer.name[1:])
        num_classes, _, background = self.task
        if (separation := self.trained.about.separation(depth)) is None:
            return [None] * len(answer.probs)
        return [separate(one, num_classes, separation, background=background) for one in answer.probs.numpy()]

    @cached_property
    def _pruned(self) -> dict[int, TorchEngine]:
        about = self.trained.about
        return {
            depth: TorchEngine(self.trained.segmenter(depth), about.at(depth), self.device)
            for depth in self.trained.depths[:-1]
        }

    def _named(self, probs: Tensor) -> dict[str, Tensor]:
        """The output of `Heads` by name, with the mean."""
        found = list(probs.split(self.heads.network.num_outputs, dim=1))
        return dict(zip(self.names, [*found, torch.stack(found).mean(dim=0)], strict=False))


class Batch(NamedTuple):
    """Some images of one size."""

    indices: list[int]  # of these images in the split
    images: tuple[np.ndarray, ...]  # (H, W, C) each
    mask: Tensor  # (N, H, W) uint8


def batches(
    split: Split | Resized, batch_size: int, indices: Sequence[int] | None = None, what: str = "images"
) -> Iterator[Batch]:
    """A split (or part of it) in batches of images of one size; the pixels of a batch are limited.

    Args:
        what: what the progress display counts.
    """
    indices = range(len(split)) if indices is None else indices
    done = iter(watched(range(len(indices)), what))
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        by_size.setdefault(split.shape(index), []).append(index)
    for (height, width, _), alike in by_size.items():
        step = max(1, min(batch_size, BATCH_PIXELS // (height * width)))
        for group in (alike[start : start + step] for start in range(0, len(alike), step)):
            images, masks = zip(*(split[index] for index in group), strict=True)
            yield Batch(group, images, torch.from_numpy(np.stack(masks)))
            for _ in group:
                next(done)
