"""What every engine is: a network of one depth, somewhere, that makes probabilities of images; numpy in and out."""

import importlib.util
from typing import NamedTuple, Protocol

import numpy as np

from unetpp.engines.processor import computes_in, has_gpu
from unetpp.models.about import About

INPUT, OUTPUT = "image", "probs"  # of an exported graph
STATISTICS = "statistics"  # its input that may be left out: a standard deviation below 0 is the image's own


class Engine(Protocol):
    """A network of one depth (or some of its heads) in one runtime, at one precision, on one device."""

    name: str  # one of ENGINES, as `--engine` and the reports say it
    about: About  # of that depth
    takes_parts: bool  # whether it takes `statistics`; else it gets every image as a whole

    def __call__(self, images: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (N, num_outputs, H, W) float32 of images; several threads may call it at once.

        Args:
            images: (N, C, H, W) float32 in [0, 1], of any height and width.
            statistics: (N, C, 2) float32, mean and standard deviation by which they are standardised where they are
                parts of larger images (`unetpp.data.scaling.measure_statistics`); by default their own.
        """
        ...


class Kind(NamedTuple):
    """What an engine computes with."""

    runtime: str  # the package
    precision: str
    format: str | None  # of the file that it opens, as exports.json says it; None: the model's own weights

    @property
    def is_here(self) -> bool:
        """Whether its package is installed and the hardware computes in its precision."""
        on_gpu = self.runtime == "torch" and has_gpu()
        return not missing(self.runtime) and (on_gpu or computes_in(self.precision))


ENGINES = {
    "torch": Kind("torch", "fp32", None),
    "torch-bf16": Kind("torch", "bf16", None),
    "torch-fp16": Kind("torch", "fp16", None),
    "onnxruntime": Kind("onnxruntime", "fp32", "onnx"),
    "openvino": Kind("openvino", "fp32", "onnx"),
    "openvino-bf16": Kind("openvino", "bf16", "onnx"),
    "onnxruntime-int8": Kind("onnxruntime", "int8", "onnx-int8"),
    "openvino-int8": Kind("openvino", "int8", "onnx-int8"),
}


def missing(runtime: str) -> bool:
    """Whether a runtime's package is not installed."""
    return importlib.util.find_spec(runtime) is None
