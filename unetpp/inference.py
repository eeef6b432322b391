"""From pixels to probabilities: scaling, normalising, padding, and the file that a trained network is kept in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetpp.errors import UserError
from unetpp.masks import to_probs
from unetpp.model import NestedUNet
from unetpp.pruning import prune

FORMAT = 2
STD_FLOOR = 1e-3  # below it, contrast is noise: an eighth of a grey level of 8 bits


def find_limits(image: np.ndarray) -> tuple[float, float]:
    """What `scaled` maps to 0 and 1: the range of the type for uint8 and uint16, of the image's own values for float32.

    Raises:
        UserError: another shape or type.
    """
    if image.ndim != 3 or image.dtype not in (np.uint8, np.uint16, np.float32):
        raise UserError(
            f"found an image array of shape {image.shape} and type {image.dtype}; "
            "expected (H, W, C) of uint8, uint16 or float32"
        )
    if image.dtype == np.float32:
        return float(image.min()), float(image.max())
    return 0.0, float(np.iinfo(image.dtype).max)


def scaled(image: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """(H, W, C) uint8, uint16 or float32 to float32 in [0, 1]; an image of one float value becomes 0.

    Args:
        limits: those of the whole image where `image` is a part of it; by default its own (`find_limits`).

    Raises:
        UserError: another shape or type.
    """
    low, high = limits or find_limits(image)
    pixels = image.astype(np.float32)
    if low:
        pixels -= np.float32(low)
    pixels /= np.float32(high - low or 1.0)
    return pixels


def scale(image: np.ndarray) -> Tensor:
    """`scaled` as a tensor (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(scaled(image).transpose(2, 0, 1)))


def standardise(image: Tensor) -> Tensor:
    """Each image and channel of (N, C, H, W) to mean 0 and standard deviation 1 over its own pixels.

    By its own and not by the data set's: exposure, staining and the bits of the camera differ from image to
    image (Isensee et al. 2021, nnU-Net, does so for all but CT). Without contrast an image becomes zeros.
    """
    mean = image.mean(dim=(-2, -1), keepdim=True)
    std = image.std(dim=(-2, -1), keepdim=True, correction=0)
    return (image - mean) / (std + STD_FLOOR)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """(N, C, H, W) padded at the bottom and the right to sides that `multiple` divides, by repeating the edge."""
    height, width = image.shape[-2:]
    # Written as a product of whole steps, so that torch.export can prove that the network's pools divide it.
    # Two steps at least: an export fixes a size that it can meet as 1, and the deepest level would meet it.
    rows: Any = torch.sym_max(2, (height + multiple - 1) // multiple)
    columns: Any = torch.sym_max(2, (width + multiple - 1) // multiple)
    return F.pad(image, (0, columns * multiple - width, 0, rows * multiple - height), mode="replicate")


class Segmenter(nn.Module):
    """A network with what stands before and after it: images of any size in, probabilities out.

    Args:
        network: by default its deepest head alone is used; `prune` first for a shallower one.
        heads: weights by depth of the heads whose probabilities are averaged instead, such as {2: 1, 4: 3}; they
            need not add up to 1.

    Raises:
        UserError: a depth at which the network has no head, or weights that are not above 0.
    """

    def __init__(self, network: NestedUNet, heads: Mapping[int, float] | None = None):
        super().__init__()
        self.network = network
        heads = {network.depth: 1.0} if heads is None else heads
        strange = sorted(set(heads) - set(network.depths))
        if strange or not heads or min(heads.values()) <= 0:
            raise UserError(
                f"heads: found {dict(heads)}; expected weights above 0 for some of the depths at which the network has "
                f"a head: {', '.join(map(str, network.depths))}"
            )
        total = sum(heads.values())
        self.shares = {network.depths.index(depth): weight / total for depth, weight in sorted(heads.items())}

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities of an image batch.

        Args:
            image: (N, C, H, W) float in [0, 1], of any height and width.

        Returns:
            (N, num_classes, H, W): the foreground's probability, one a class, or one a label.
        """
        return self.probs(standardise(image))

    def probs(self, standardised: Tensor) -> Tensor:
        """`forward` of an image that `standardise` has seen, or of a part of one (`unetpp.tiles`)."""
        height, width = standardised.shape[-2:]
        logits = self.network(pad_to_multiple(standardised, 2**self.network.depth))
        each = [to_probs(logits[index], self.network.multilabel) * share for index, share in self.shares.items()]
        probs = each[0] if len(each) == 1 else torch.stack(each).sum(dim=0)
        # A crop, written as negative padding: an export of a slice keeps a guard on whether it was the whole.
        return F.pad(probs, (0, width - probs.shape[-1], 0, height - probs.shape[-2]))

    def logits(self, image: Tensor) -> tuple[Tensor, ...]:
        """The logits of every head of the network, each (N, num_classes, H', W').

        H' and W' are those of the padded image; the image's own pixels are its first H rows and W columns.
        """
        return self.network(pad_to_multiple(standardise(image), 2**self.network.depth))


@dataclass(frozen=True)
class Trained:
    """A trained network and what is needed to use it; saved as one file that holds no code."""

    network: NestedUNet
    size: int | None  # px that images were resized to for training, if they were
    info: dict[str, Any] = field(default_factory=dict)  # where it comes from: params, hashes, epoch

    @property
    def classes(self) -> list[str]:
        """Names of the foreground classes, or of the labels; numbers where the data have no names for them."""
        first = 1 if self.network.num_classes > 1 and not self.network.multilabel else 0
        count = self.network.num_classes - first
        return self.info.get("classes") or [str(number) for number in range(1, count + 1)]

    @property
    def depths(self) -> tuple[int, ...]:
        return self.network.depths

    def segmenter(self, depth: int | None = None) -> Segmenter:
        """The network pruned to a depth, by default the deepest, in eval mode.

        Raises:
            UserError: it cannot be pruned to that depth.
        """
        network = prune(self.network, self.network.depth if depth is None else depth)
        return Segmenter(network).eval()

    def ensemble(self, heads: Mapping[int, float] | None = None) -> Segmenter:
        """The weighted mean of the probabilities of several heads, by default of all alike, in eval mode.

        The network is pruned to the deepest of them, so that it costs no more than that depth and its heads.

        Raises:
            UserError: a depth at which it has no head, or weights that are not above 0.
        """
        heads = dict.fromkeys(self.depths, 1.0) if heads is None else heads
        Segmenter(self.network, heads)  # refuses what is no set of its heads
        return Segmenter(prune(self.network, max(heads), keep_heads=len(self.depths) > 1), heads).eval()

    def save(self, path: str | Path) -> None:
        """Write the file; the caller sees to it that it appears whole."""
        weights = {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}
        content = {"size": self.size, "info": self.info}
        torch.save({"format": FORMAT, "config": self.network.config(), "weights": weights, **content}, path)


def load_model(path: str | Path) -> Trained:
    """Read what `Trained.save` wrote: a file, or a folder with `model.pt`. Runs no code of the file's author.

    Raises:
        UserError: no such file, not such a file, or of another format.
    """
    path = Path(path)
    file = path / "model.pt" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such model; expected what the train stage writes, models/train/model.pt")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise UserError(f"{file}: format {content['format']}, and this version reads format {FORMAT}")
        network = NestedUNet(**content["config"])
        network.load_state_dict(content["weights"])
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        raise UserError(
            f"{file}: not a model of this project, or damaged ({reason}); train again, or copy the file again"
        ) from None
    return Trained(network.eval(), content["size"], content["info"])
