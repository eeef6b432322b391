"""A depth as one graph, from an image of any size in [0, 1] to probabilities: torch.export's .pt2 and ONNX.

Standardising, padding and cropping are part of the graph (`unetpp.Segmenter`); batch, height and width stay dynamic. An
ONNX graph has a second, optional input: the statistics for standardising parts of a larger image. File names and line
numbers of the exporting machine are removed.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from unetpp.engines.engine import INPUT, OUTPUT, OWN, STATISTICS
from unetpp.models.segmenter import Segmenter

AXES = {0: "batch", 2: "height", 3: "width"}
# The first is the oldest that torch's exporter writes, the last the newest that it writes.
OLDEST_OPSET, NEWEST_OPSET = 18, 23


def missing_for_onnx() -> list[str]:
    """The packages for writing ONNX that are not installed here."""
    return [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]


def capture(segmenter: Segmenter) -> ExportedProgram:
    """The graph of a segmenter in eval mode."""
    step = 2**segmenter.network.depth
    # Sizes that differ from each other and from 1, otherwise the export would identify them.
    example = torch.rand(2, segmenter.network.in_channels, 3 * step + 1, 4 * step + 3)
    with torch.no_grad():
        program = torch.export.export(segmenter, (example,), dynamic_shapes=(dict.fromkeys(AXES, Dim.DYNAMIC),))
    program.example_inputs = None  # they would be pickled into the file
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def save_pt2(program: ExportedProgram, path: str | Path) -> None:
    """Write a .pt2, which `torch.export.load(path).module()` turns into a module again."""
    content = io.BytesIO()  # on a full disk torch's own writer would kill the process with SIGABRT
    torch.export.save(program, content)
    Path(path).write_bytes(content.getbuffer())


def save_onnx(program: ExportedProgram, path: str | Path, opset: int) -> None:
    """Write ONNX: `image` (batch, C, height, width) in, `probs` (batch, num_outputs, height, width) out.

    `statistics` (batch or 1, C, 2), mean and standard deviation of the larger image that `image` is a part of, is
    optional: by default each image is standardised with its own.
    """
    with torch.no_grad(), _quiet():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    assert exported is not None
    model = exported.model
    shape = model.graph.inputs[0].shape
    assert shape is not None
    exported.rename_axes({shape[axis]: name for axis, name in AXES.items()})  # pyright: ignore[reportArgumentType]
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    proto = exported.model_proto
    _take_statistics(proto.graph)
    _double_by_scale(proto.graph)
    _crop_by_slice(proto.graph)
    Path(path).write_bytes(proto.SerializeToString())


def _take_statistics(graph) -> None:
    """Standardise by the input `statistics` where its standard deviation is not below 0, as it is by default.

    An input with an initializer is optional. OpenVINO reads it as a constant.

    By default the image's own are used, which the graph computes in a second pass: runtimes add up pixel by pixel in
    fp32, which alone is too coarse for large images of low contrast.
    """
    from onnx import TensorProto, helper, numpy_helper

    makers = {output: node for node in graph.node for output in node.output}
    # Standardised: (image - mean) / (standard deviation + STD_FLOOR).
    divided = next(
        node
        for node in graph.node
        if node.op_type == "Div" and (above := makers.get(node.input[0])) and list(above.input[:1]) == [INPUT]
    )
    (_, mean), (_, floor) = (makers[name].input for name in divided.input)
    added = [
        helper.make_node("Sub", [INPUT, mean], ["nearly_centred"]),
        helper.make_node("ReduceMean", ["nearly_centred", "last_axis"], ["shift_by_row"]),
        helper.make_node("ReduceMean", ["shift_by_row", "row_axis"], ["shift"]),
        helper.make_node("Add", [mean, "shift"], ["own_mean"]),
        helper.make_node("Sub", [INPUT, "own_mean"], ["own_centred"]),
        helper.make_node("Mul", ["own_centred", "own_centred"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "last_axis"], ["variance_by_row"]),
        helper.make_node("ReduceMean", ["variance_by_row", "row_axis"], ["own_variance"]),
        helper.make_node("Sqrt", ["own_variance"], ["own_std"]),
        helper.make_node("Split", [STATISTICS], ["given_mean", "given_std"], axis=2, num_outputs=2),
        helper.make_node("Unsqueeze", ["given_mean", "last_axis"], ["part_mean"]),
        helper.make_node("Unsqueeze", ["given_std", "last_axis"], ["part_std"]),  # (batch or 1, C, 1, 1)
        helper.make_node("Less", ["part_std", "no_std"], ["is_whole"]),
        helper.make_node("Where", ["is_whole", "own_mean", "part_mean"], ["chosen_mean"]),
        helper.make_node("Where", ["is_whole", "own_std", "part_std"], ["chosen_std"]),
        helper.make_node("Sub", [INPUT, "chosen_mean"], ["centred"]),
        helper.make_node("Add", ["chosen_std", floor], ["floored"]),
    ]
    divided.input[:] = ["centred", "floored"]
    nodes = list(graph.node)
    at = nodes.index(divided)
    graph.ClearField("node")
    graph.node.extend([*nodes[:at], *added, *nodes[at:]])
    channels = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    default = np.tile(np.array(OWN, np.float32), (1, channels, 1))
    constants = {"row_axis": np.array([2]), "last_axis": np.array([3]), "no_std": np.float32(0), STATISTICS: default}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    graph.input.append(helper.make_tensor_value_info(STATISTICS, TensorProto.FLOAT, ["parts", channels, 2]))


def _double_by_scale(graph) -> None:
    """Let every upsampling double by a constant, where torch wrote the size of the level above.

    ONNX Runtime then keeps its own layout from convolution to convolution: a pass holds half as much, and is faster.
    """
    from onnx import numpy_helper

    for node in graph.node:
        if node.op_type == "Resize":
            node.input[1:] = ["", "double"]
    graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "double"))


def _crop_by_slice(graph) -> None:
    """Replace the last node, the crop that torch wrote as a negative Pad, by a Slice to the sides of the image.

    OpenVINO 2026.4 returns an empty array for such a Pad if more than half is cut off (images smaller than a step of
    the deepest level, with transposed upsampling). The nodes that computed pads and other sizes are removed.
    """
    from onnx import helper, numpy_helper

    pad = graph.node.pop()
    assert pad.op_type == "Pad"
    assert pad.output[0] == OUTPUT
    constants = {"crop_starts": [0, 0], "crop_axes": [2, 3]}
    graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    graph.node.append(helper.make_node("Shape", [INPUT], ["crop_ends"], "crop_sides", start=2, end=4))
    sources = [pad.input[0], "crop_starts", "crop_ends", "crop_axes"]
    graph.node.append(helper.make_node("Slice", sources, [OUTPUT], "crop"))
    used = {OUTPUT}
    for node in reversed(list(graph.node)):
        if used.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            used.update(node.input)
    for name in ("initializer", "value_info"):
        kept = [one for one in getattr(graph, name) if one.name in used]
        graph.ClearField(name)
        getattr(graph, name).extend(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's warnings about its own deprecated calls during export, and about missing torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
