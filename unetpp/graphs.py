"""A depth as one graph, from an image of any size in [0, 1] to probabilities: torch.export's .pt2 and ONNX.

Standardising, padding and cropping are in the graph (`unetpp.Segmenter`); batch, height and width stay free. Names of
files and lines of the machine that exported are taken out.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from unetpp.inference import Segmenter

INPUT, OUTPUT = "image", "probs"
AXES = {0: "batch", 2: "height", 3: "width"}
# The first is the oldest that torch's exporter writes, the last the newest that it writes.
OLDEST_OPSET, NEWEST_OPSET = 18, 23


def missing_for_onnx() -> list[str]:
    """The packages that writing ONNX lacks here."""
    return [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]


def capture(segmenter: Segmenter) -> ExportedProgram:
    """The graph of a segmenter in eval mode."""
    step = 2**segmenter.network.depth
    # Sizes that differ from each other and from 1, or the export takes one for the other.
    example = torch.rand(2, segmenter.network.in_channels, 3 * step + 1, 4 * step + 3)
    with torch.no_grad():
        program = torch.export.export(segmenter, (example,), dynamic_shapes=(dict.fromkeys(AXES, Dim.DYNAMIC),))
    program.example_inputs = None  # would be kept in the file, pickled
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def save_pt2(program: ExportedProgram, path: str | Path) -> None:
    """Write what `torch.export.load(path).module()` makes a module of again."""
    torch.export.save(program, path)


def save_onnx(program: ExportedProgram, path: str | Path, opset: int) -> None:
    """Write ONNX: `image` (batch, C, height, width) in, `probs` (batch, num_classes, height, width) out."""
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
    exported.save(str(path), external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns of its own deprecated calls while it exports, and that torchvision, which nobody needs, is absent."""
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
