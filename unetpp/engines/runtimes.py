"""Exported ONNX files in fp32 or int8 as engines, with ONNX Runtime and OpenVINO. Nothing here needs torch."""

import math
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from unetpp.data.scaling import STD_FLOOR, measure_statistics
from unetpp.engines.engine import ENGINES, INPUT, STATISTICS, missing
from unetpp.engines.processor import has_gpu
from unetpp.engines.signal_stack import kept_signal_stack
from unetpp.errors import FileError, UserError, said, to_install
from unetpp.models.about import About, read_about
from unetpp.offline import silenced
from unetpp.threads import chosen_threads

Compute = Callable[[dict[str, np.ndarray], bool], np.ndarray]  # inputs, and whether they are part of a larger image
FIXED_PX = 2**18  # parts of at least this size get a graph of their own
RUNTIMES = ("onnxruntime", "openvino")  # in order of preference


class ExportEngine:
    """An exported file in a runtime.

    The statistics of whole images are measured here: runtimes add up in fp32, which is too coarse for large images of
    low contrast. Files with the input `statistics` accept parts of images; those of earlier versions do not have it. A
    network that pads whole images to a canvas pads inside the graph and accepts no parts: its images are small.
    """

    def __init__(self, file: Path, name: str, about: About, compute: Compute, takes_statistics: bool):
        self.file, self.name, self.about, self._compute = file, name, about, compute
        self.takes_parts = takes_statistics and about.canvas is None
        self._takes_statistics = takes_statistics

    def __call__(self, images: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray:
        assert statistics is None or self.takes_parts, "this file takes whole images"
        is_part, given = statistics is not None, {INPUT: images}
        if self._takes_statistics:
            statistics = measure_statistics(images) if statistics is None else statistics
            # OpenVINO would standardise in bf16, whose steps are as large as a grey level.
            if self.name.endswith("bf16"):
                mean, std = (statistics[:, :, index, None, None] for index in (0, 1))
                given[INPUT] = (images - mean) / (std + np.float32(STD_FLOOR))
                statistics = np.full_like(statistics, (0, 1 - STD_FLOOR))
            given[STATISTICS] = statistics
        probs = self._compute(given, is_part)
        if probs.shape[:1] + probs.shape[2:] != images.shape[:1] + images.shape[2:]:
            found = f"{self.name} returned shape {probs.shape} for images of shape {images.shape}"
            raise FileError(self.file, found, "use another engine for such images")
        return probs


def _onnxruntime(file: Path, name: str, threads: int, device: str | None) -> tuple[Compute, bool]:
    with silenced():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Its threads would spin while waiting for the next pass, and slow other runtimes that are measured in between.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers: list = ["CPUExecutionProvider"]
    if device != "cpu" and ENGINES[name].precision != "int8":  # GPUs compute such int8 in float
        known = onnxruntime.get_available_providers()
        if "CUDAExecutionProvider" in known and has_gpu():
            providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": 0}))
        elif "DmlExecutionProvider" in known:
            providers.insert(0, "DmlExecutionProvider")
            options.enable_mem_pattern = False  # not supported by DirectML
    session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    takes = any(one.name == STATISTICS for one in session.get_overridable_initializers())
    return lambda given, _is_part: np.asarray(session.run(None, given)[0]), takes


def _openvino(file: Path, name: str, threads: int, _device: str | None) -> tuple[Compute, bool]:
    with silenced():
        import openvino

    core, local, lock = openvino.Core(), threading.local(), threading.Lock()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # By default OpenVINO uses bf16 if the processor supports it.
        "INFERENCE_PRECISION_HINT": "bf16" if ENGINES[name].precision == "bf16" else "f32",
    }
    model = core.read_model(str(file))
    # OpenVINO turns an optional input into a constant.
    for constant in (one for one in model.get_ops() if one.get_friendly_name() == STATISTICS):
        shape = openvino.PartialShape([-1, *list(constant.shape)[1:]])
        given = openvino.opset13.parameter(shape, openvino.Type.f32, name=STATISTICS)
        given.output(0).get_tensor().set_names({STATISTICS})
        for reader in constant.output(0).get_target_inputs():
            reader.replace_source_output(given.output(0))
        model.add_parameters([given])
    takes = len(model.inputs) > 1
    with kept_signal_stack():
        compiled = core.compile_model(model, "CPU", settings)

    def request_for(shapes: dict[str, tuple[int, ...]]):
        """A graph of fixed size plans its memory: it holds at most half as much as one for any size."""
        with lock, kept_signal_stack():
            model.reshape(shapes)
            return core.compile_model(model, "CPU", settings).create_infer_request()

    def compute(given: dict[str, np.ndarray], is_part: bool) -> np.ndarray:
        if is_part and math.prod(given[INPUT].shape[-2:]) >= FIXED_PX:
            shapes = {name: value.shape for name, value in given.items()}
            if getattr(local, "shapes", None) != shapes:  # all tiles of an image have the same shape
                local.part = local.shapes = None  # two would hold twice as much
                local.part, local.shapes = request_for(shapes), shapes
            request = local.part
        else:
            if not hasattr(local, "request"):  # each thread needs its own
                local.request = compiled.create_infer_request()
            request = local.request
        return np.array(request.infer(given)[0])  # a copy: the next pass writes into the same memory

    return compute, takes


OPENERS = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def open_export(
    file: str | Path,
    name: str | None = None,
    about: About | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
) -> ExportEngine:
    """Open an exported .onnx as an engine.

    Args:
        name: name of the engine, such as "openvino"; by default the first runtime that is installed.
        about: about the network; by default read from the model.safetensors next to the file.
        threads: by default those of this process (`unetpp.threads`).
        device: "cpu" keeps ONNX Runtime from using a GPU.

    Raises:
        UserError: no such file, not an .onnx, or a runtime that is not installed or cannot read the file.
    """
    file = Path(file)
    if file.suffix == ".pt2":
        raise UserError(f"{file}: opening a .pt2 can run its author's code; use its folder, {file.parent}, instead")
    if not file.is_file() or file.suffix != ".onnx":
        found = "no such file" if not file.is_file() else f"no runtime reads {file.suffix or 'such files'}"
        raise UserError(f"{file}: {found}; expected an export, such as models/export/L1/model.onnx")
    runtimes = RUNTIMES if name is None else (name.partition("-")[0],)
    if strange := set(runtimes) - set(RUNTIMES):
        raise UserError(f"{file}: {strange.pop()} does not read .onnx; expected {' or '.join(RUNTIMES)}")
    runtime = next((one for one in runtimes if not missing(one)), None)
    if runtime is None:
        raise UserError(f"{file}: {' or '.join(runtimes)} is not installed: {to_install('exports')}")
    about = about or read_about(file.parent)
    if about is None:
        raise UserError(f"{file.parent}: found a model of an earlier version; export it again")
    name = name or runtime
    if "int8" in file.stem and name == runtime:
        name = f"{runtime}-int8"
    try:
        compute, takes_statistics = OPENERS[runtime](file, name, threads or chosen_threads(), device)
    except Exception as error:
        raise UserError(
            f"{file}: {runtime} cannot read this file ({said(error)}); copy it again, or export again"
        ) from None
    return ExportEngine(file, name, about, compute, takes_statistics)
