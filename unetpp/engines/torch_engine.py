"""torch as an engine, on a processor or a GPU."""

import numpy as np
import torch

from unetpp.models.about import About
from unetpp.models.segmenter import Segmenter


class TorchEngine:
    """A `Segmenter` in eager mode, in fp32: what all other engines are compared with.

    Args:
        segmenter: used in eval mode.
        about: of the network that it holds.
        device: by default where the segmenter is.
    """

    name, takes_parts = "torch", True

    def __init__(self, segmenter: Segmenter, about: About, device: str | torch.device | None = None):
        self.device = torch.device(device or next(segmenter.parameters()).device)
        self.segmenter, self.about = segmenter.eval().to(self.device), about

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        parts = () if statistics is None else (torch.from_numpy(statistics).to(self.device),)
        return self.segmenter(batch, *parts).float().cpu().numpy()
