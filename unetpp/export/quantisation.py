"""Static int8 quantisation of an ONNX file: all scales are set by running the network on calibration images.

Weights are int8 with a scale per channel, activations uint8 with a scale per tensor, written as QuantizeLinear and
DequantizeLinear around the operators (QDQ), which ONNX Runtime and OpenVINO both turn into integer arithmetic. The
head, standardising and the sigmoid or softmax stay in float.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from unetpp.engines.engine import INPUT
from unetpp.offline import silenced

# Operators between two convolutions are quantised too, otherwise each convolution would begin and end in float.
OPERATORS = ["Conv", "Relu", "MaxPool", "Concat", "Resize"]


def quantise(source: str | Path, target: str | Path, images: Iterable[np.ndarray]) -> None:
    """Write the int8 model of an ONNX file of `unetpp.export.graphs.save_onnx`.

    Args:
        images: calibration images, float32 (N, C, H, W) in [0, 1], similar to those of deployment, of any sizes.
    """
    import onnx

    with silenced():
        import onnxruntime
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quant_pre_process,
            quantize_static,
        )

    class Reader(CalibrationDataReader):
        def __init__(self, images: Iterator[np.ndarray]):
            self.images = images

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            image = next(self.images, None)
            return None if image is None else {INPUT: image}

    onnxruntime.set_default_logger_severity(
        3
    )  # otherwise it warns that `statistics`, which has a default, is not constant
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as folder:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(Path(source), prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared, load_external_data=False).graph
        head = [node.name for node in graph.node if node.op_type == "Conv"][-1]
        quantize_static(
            prepared,
            target,
            Reader(iter(images)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            nodes_to_exclude=[head],
            per_channel=True,
            # 7-bit weights: older x86 processors add two products in 16 bits, which 8-bit weights would overflow.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
