"""torch as an engine, on a CPU or GPU: the unchanged network in eager mode, or optimised for deployment."""

from collections.abc import Mapping

import numpy as np
import torch

from unetpp.engines.engine import ENGINES
from unetpp.engines.processor import computes_in
from unetpp.errors import UserError
from unetpp.models.about import About
from unetpp.models.model_file import Trained
from unetpp.models.segmenter import Segmenter

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CAPABILITY = {"fp32": (0, 0), "bf16": (8, 0), "fp16": (7, 0)}  # CUDA compute capability that supports it


class TorchEngine:
    """A `Segmenter` in eager mode and fp32: the reference for all other engines.

    Args:
        segmenter: used in eval mode.
        about: about its network.
        device: by default the device of the segmenter.
        name: one of ENGINES.
    """

    takes_parts = True

    def __init__(
        self, segmenter: Segmenter, about: About, device: str | torch.device | None = None, name: str = "torch"
    ):
        self.device = torch.device(device or next(segmenter.parameters()).device)
        self.segmenter, self.about, self.name = segmenter.eval().to(self.device), about, name

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        parts = () if statistics is None else (torch.from_numpy(statistics).to(self.device),)
        return self.segmenter(batch, *parts).float().cpu().numpy()


def deploy(
    trained: Trained,
    depth: int,
    heads: Mapping[int, float] | None = None,
    name: str = "torch",
    device: str | torch.device | None = None,
) -> TorchEngine:
    """The fastest form of a depth or mean of heads: batch norm folded, channels last, in the precision of its name.

    Standardising and probabilities stay in fp32.

    Raises:
        UserError: a precision that the device does not support, or heads that the network does not have.
    """
    Segmenter(trained.network, heads)
    folded = trained.folded(max(heads) if heads else depth, keep_heads=bool(heads))
    segmenter = folded.ensemble(heads) if heads else folded.segmenter()
    where, precision = torch.device(device or trained.device), ENGINES[name].precision
    is_gpu = where.type == "cuda"
    if (torch.cuda.get_device_capability(where) < CAPABILITY[precision]) if is_gpu else not computes_in(precision):
        raise UserError(f"engine {name}: {where.type} does not support {precision} here: use engine torch")
    dtype, last = DTYPES[precision], torch.channels_last
    network = segmenter.network.to(where, dtype)
    network.to(memory_format=last)  # pyright: ignore[reportCallIssue] - torch's overloads lack it
    network.register_forward_pre_hook(lambda _, given: (given[0].to(dtype=dtype, memory_format=last),))
    network.register_forward_hook(lambda _, _given, logits: tuple(each.float() for each in logits))
    return TorchEngine(segmenter, folded.about.at(folded.network.depth), where, name)
