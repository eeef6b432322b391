"""Every depth's answer in one pass of the whole network, over a split of images of any sizes."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unetpp.data.arrow_split import Split
from unetpp.data.scaling import scale
from unetpp.inference.model_file import Trained
from unetpp.inference.segmenter import Segmenter
from unetpp.network.masks import to_mask, to_probs

MEAN = "mean"  # the name of the ensemble: the mean of the probabilities of all heads
BATCH_PIXELS = 2**21  # of the images predicted together; large ones go one by one


def head_probs(segmenter: Segmenter, image: Tensor) -> list[Tensor]:
    """Probabilities (N, num_classes, H, W) of every head, shallowest first, of images (N, C, H, W)."""
    height, width = image.shape[-2:]
    multilabel = segmenter.network.multilabel
    return [to_probs(logits, multilabel)[..., :height, :width] for logits in segmenter.logits(image)]


class Predictor:
    """Probabilities or masks of every depth; with several depths, of their mean too."""

    def __init__(self, trained: Trained, device: torch.device):
        self.segmenter = Segmenter(trained.network).eval().to(device)
        self.device = device
        self.names = [f"L{depth}" for depth in trained.depths] + [MEAN] * (len(trained.depths) > 1)

    @property
    def task(self) -> tuple[int, bool]:
        """num_classes and multilabel, as unetpp.network.masks takes them."""
        return self.segmenter.network.num_classes, self.segmenter.network.multilabel

    def probs(self, images: Iterable[np.ndarray]) -> dict[str, Tensor]:
        """(H, W, C) images of one size to (N, num_classes, H, W) probabilities of each name, on the CPU."""
        return self.probs_of(torch.stack([scale(image) for image in images]))

    def probs_of(self, images: Tensor) -> dict[str, Tensor]:
        """As `probs`, of (N, C, H, W) in [0, 1]."""
        with torch.inference_mode():
            probs = head_probs(self.segmenter, images.to(self.device))
            probs.append(torch.stack(probs).mean(dim=0))
            return {name: each.cpu() for name, each in zip(self.names, probs, strict=False)}

    def masks_of(self, images: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) images in [0, 1] to the (N, H, W) uint8 masks of each name."""
        return {name: to_mask(each, self.task[1]) for name, each in self.probs_of(images).items()}

    def __call__(self, images: Iterable[np.ndarray]) -> dict[str, Tensor]:
        """(H, W, C) images of one size to the (N, H, W) uint8 masks of each name."""
        return {name: to_mask(each, self.task[1]) for name, each in self.probs(images).items()}


class Batch(NamedTuple):
    """Some images of one size."""

    indices: list[int]  # of these images in the split
    images: tuple[np.ndarray, ...]  # (H, W, C) each
    mask: Tensor  # (N, H, W) uint8


def batches(split: Split, batch_size: int, indices: Iterable[int] | None = None) -> Iterator[Batch]:
    """A split (or some of it) in batches of one size each; a batch never holds many pixels."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index in range(len(split)) if indices is None else indices:
        by_size.setdefault(split[index][0].shape, []).append(index)
    for (height, width, _), alike in by_size.items():
        step = max(1, min(batch_size, BATCH_PIXELS // (height * width)))
        for group in (alike[start : start + step] for start in range(0, len(alike), step)):
            images, masks = zip(*(split[index] for index in group), strict=True)
            yield Batch(group, images, torch.from_numpy(np.stack(masks)))
