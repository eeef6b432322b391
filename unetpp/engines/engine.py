"""What every engine is: a network of one depth, somewhere, that makes probabilities of images; numpy in and out."""

from typing import Protocol

import numpy as np

from unetpp.models.about import About

INPUT, OUTPUT = "image", "probs"  # of an exported graph


class Engine(Protocol):
    """A network of one depth (or some of its heads) in one runtime, at one precision, on one device."""

    name: str  # as `--engine` and the reports say it: torch, torch-bf16, onnxruntime, openvino-int8 ...
    about: About  # of that depth
    takes_parts: bool  # whether it takes `statistics`; else it gets every image as a whole

    def __call__(self, images: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (N, num_classes, H, W) float32 of images.

        Args:
            images: (N, C, H, W) float32 in [0, 1], of any height and width.
            statistics: (N, C, 2) float32, mean and standard deviation by which they are standardised where they are
                parts of larger images (`unetpp.data.scaling.measure_statistics`); by default their own.
        """
        ...
