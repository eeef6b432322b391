"""Exported depths in each runtime, as one kind of function: (N, C, H, W) float32 in [0, 1] to probabilities, in numpy.

All run on the processor in float32 (an int8 file in int8) with the same number of threads.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from unetpp.engines.engine import INPUT
from unetpp.engines.signal_stack import kept_signal_stack
from unetpp.errors import UserError, said
from unetpp.models.about import MODEL, About
from unetpp.models.model_file import load_model
from unetpp.models.segmenter import Segmenter
from unetpp.offline import silenced

Predict = Callable[[np.ndarray], np.ndarray]


def _of_module(module: Callable[[torch.Tensor], torch.Tensor]) -> Predict:
    def predict(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(image))).numpy()

    return predict


def of_segmenter(segmenter: Segmenter) -> Predict:
    """The eager network, to compare with."""
    return _of_module(segmenter.eval())


def _open_safetensors(file: Path, _threads: int) -> Predict:
    return of_segmenter(load_model(file).segmenter())


def _open_pt2(file: Path, _threads: int) -> Predict:
    return _of_module(torch.export.load(file).module())


def _open_onnxruntime(file: Path, threads: int) -> Predict:
    with silenced():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Its threads wait by spinning for the next pass, and would slow another runtime that is measured in between.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda image: np.asarray(session.run(None, {INPUT: image})[0])


def _open_openvino(file: Path, threads: int) -> Predict:
    with silenced():
        import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # or it takes bf16 where the processor has it
    }
    with kept_signal_stack():
        compiled = core.compile_model(core.read_model(str(file)), "CPU", settings)
    return lambda image: np.array(compiled(image)[0])  # a copy: the next pass writes into the same memory


# By runtime and suffix of the file: what opens it.
RUNTIMES: dict[str, dict[str, Callable[[Path, int], Predict]]] = {
    "torch": {".safetensors": _open_safetensors, ".pt2": _open_pt2},
    "onnxruntime": {".onnx": _open_onnxruntime},
    "openvino": {".onnx": _open_openvino},
}


def missing(runtime: str) -> bool:
    """Whether a runtime's package is not installed."""
    return importlib.util.find_spec(runtime) is None


def runtimes_of(file: str | Path) -> list[str]:
    """The runtimes that read a file of this suffix, installed or not."""
    return [name for name, openers in RUNTIMES.items() if Path(file).suffix in openers]


def open_export(
    file: str | Path, runtime: str | None = None, threads: int | None = None, trusted: bool = False
) -> Predict:
    """An exported file, or the folder of a depth, as a function.

    Args:
        runtime: "torch", "onnxruntime" or "openvino"; by default the first that is installed and reads the file.
        threads: by default as many as torch has here; torch itself always takes those.
        trusted: open a .pt2 too, which runs code of whoever wrote it.

    Raises:
        UserError: no such file, no runtime for it, one that is not installed or cannot read it, or a .pt2.
    """
    file = Path(file)
    if file.is_dir():
        file = file / MODEL
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected an export, such as models/export/L1/model.onnx")
    if file.suffix == ".pt2" and not trusted:
        raise UserError(f"{file}: opening a .pt2 can run its author's code; give its folder, {file.parent}, instead")
    readers = runtimes_of(file)
    if not readers or (runtime and runtime not in readers):
        known = sorted({suffix for openers in RUNTIMES.values() for suffix in openers})
        expected = " or ".join(readers) or f"a file ending in {', '.join(known)}"
        reads = f"{runtime} does not read" if readers else "no runtime reads"
        raise UserError(f"{file}: {reads} {file.suffix or 'such files'}; expected {expected}")
    installed = [name for name in readers if not missing(name)]
    if not installed or (runtime and runtime not in installed):
        raise UserError(
            f"{file}: {runtime or ' or '.join(readers)} is not installed; `pip install 'unetpp[exports]'` installs it"
        )
    runtime = runtime or installed[0]
    try:
        opened = RUNTIMES[runtime][file.suffix](file, threads or torch.get_num_threads())
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{file}: {runtime} cannot read it ({said(error)}); export again, or copy the file again"
        ) from None

    def predict(image: np.ndarray) -> np.ndarray:
        probs = opened(image)
        if probs.shape[:1] + probs.shape[2:] != image.shape[:1] + image.shape[2:]:
            raise UserError(
                f"{file}: {runtime} answers images {tuple(image.shape)} with shape {tuple(probs.shape)}; use another "
                f"runtime for such images: {', '.join(name for name in readers if name != runtime) or 'none reads it'}"
            )
        return probs

    return predict


class ExportEngine:
    """An exported file in a runtime as an engine. It standardises what it gets, so that it takes no parts."""

    takes_parts = False

    def __init__(self, file: str | Path, about: About, runtime: str | None = None):
        self.about, self._predict = about, open_export(file, runtime)
        self.name = runtime or next(name for name in runtimes_of(file) if not missing(name))

    def __call__(self, images: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray:
        assert statistics is None, "an exported file takes whole images"
        return self._predict(images)
