"""The interface of engines: a network of one depth that computes probabilities of images, with numpy in and out."""

import importlib.util
from typing import NamedTuple, Protocol

import numpy as np

from unetpp.engines.processor import computes_in, has_gpu
from unetpp.models.about import About

INPUT, OUTPUT = "image", "probs"  # names in an exported graph
STATISTICS = "statistics"  # its optional input
OWN = 0.0, -1.0  # as mean and standard deviation: the graph is to measure the image's own


class Engine(Protocol):
    """A network of one depth (or some of its heads) in one runtime, at one precision, on one device."""

    name: str  # one of ENGINES, as in `--engine` and the reports
    about: About  # about the network of this depth
    takes_parts: bool  # whether it accepts `statistics`; if not, it only predicts whole images

    def __call__(self, images: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (N, num_outputs, H, W) float32 of images; several threads may call it at once.

        Args:
            images: (N, C, H, W) float32 in [0, 1], of any height and width.
            statistics: (N, C, 2) float32, mean and standard deviation for standardising images that are parts of
                larger ones (`unetpp.data.scaling.measure_statistics`); by default the image's own.
        """
        ...


class Kind(NamedTuple):
    """The runtime, file format and precision of an engine."""

    runtime: str  # the package
    precision: str
    format: str | None  # format of the file that it opens, as in exports.json; None: the model's own weights

    @property
    def is_here(self) -> bool:
        """Whether its package is installed and the hardware supports its precision."""
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
