"""A trained network and its file (`unetpp.models.about`), read with torch, numpy and safetensors alone.

The tensors have NestedUNet's names. The file holds no code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetpp.errors import UserError, said
from unetpp.images.frame import Fit, Frame, Size, as_size, plain
from unetpp.models import older_files
from unetpp.models.about import FIX, UNSEALED, About, find_file, is_zip, read_sealed
from unetpp.models.about import MODEL as MODEL
from unetpp.models.older_files import Contents, read_tensors
from unetpp.models.segmenter import Segmenter
from unetpp.network.folding import fold
from unetpp.network.masks import MASK
from unetpp.network.model import NestedUNet
from unetpp.network.pruning import prune


@dataclass(frozen=True)
class Trained:
    """A trained network and what is needed to use it; saved as one sealed file that holds no code."""

    network: NestedUNet
    size: int | Size | None  # px that images were resized to for training, stored as a pair; None: not resized
    info: dict[str, Any] = field(default_factory=dict)  # its origin: params, hashes, epoch
    sha256: str | None = None  # of the file that it was read from
    fit: Fit = "stretch"  # how they were resized

    def __post_init__(self):
        object.__setattr__(self, "size", as_size(self.size))

    @property
    def about(self) -> About:
        """The description of the network: its inputs, outputs and origin."""
        return About(self.network.config(), self.size, self.info, self.sha256, self.fit)

    @property
    def frame(self) -> Frame | None:
        """How whole images are resized or padded; None if they are not."""
        return self.about.frame

    @property
    def classes(self) -> list[str]:
        """Names of the classes without the background, or of the labels (`About.classes`)."""
        return self.about.classes

    @property
    def names(self) -> list[str]:
        """The meaning of the mask values 0, 1 ... (`About.names`)."""
        return self.about.names

    @property
    def depths(self) -> tuple[int, ...]:
        return self.network.depths

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def __repr__(self) -> str:
        return f"Trained({self.about.describe(self.depths)})"

    def segmenter(self, depth: int | None = None) -> Segmenter:
        """The network pruned to a depth, by default the deepest, in eval mode.

        Raises:
            UserError: it cannot be pruned to that depth.
        """
        network = prune(self.network, self.network.depth if depth is None else depth)
        return Segmenter(network, canvas=self.about.canvas).eval()

    def ensemble(self, heads: Mapping[int, float] | None = None) -> Segmenter:
        """The weighted mean of the probabilities of several heads, by default of all with equal weights, in eval mode.

        The network is pruned to the deepest of them, so that it costs no more than that depth and its heads.

        Raises:
            UserError: a depth at which it has no head, or weights that are not above 0.
        """
        heads = dict.fromkeys(self.depths, 1.0) if heads is None else heads
        Segmenter(self.network, heads)  # refuses what is no set of its heads
        network = prune(self.network, max(heads), keep_heads=len(self.depths) > 1)
        return Segmenter(network, heads, self.about.canvas).eval()

    def folded(self, depth: int | None = None, keep_heads: bool = False) -> "Trained":
        """The network pruned to a depth, by default the deepest, with batch norm folded, as it is exported.

        Args:
            keep_heads: keep the heads of the shallower depths too, so that it can still be pruned and averaged.

        Raises:
            UserError: it cannot be pruned to that depth.
        """
        depth = self.network.depth if depth is None else depth
        network = fold(prune(self.network, depth, keep_heads and len(self.depths) > 1))
        return replace(self, network=network, sha256=None)

    def save(self, path: str | Path) -> None:
        """Write the file, not atomically. The same network gives the same bytes."""
        weights = {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}
        from safetensors.torch import save  # late: networks can be used without files

        # The seal comes first, where it is the first sequence of this many zeros.
        size = plain(self.size)
        is_new = isinstance(size, list) or self.fit != "stretch"
        number = 6 if self.network.targets != MASK else 5 if self.network.encoder else 4 if is_new else 3
        about = {"seal": UNSEALED, "format": number, "network": self.network.config(), "size": size}
        about |= ({"fit": self.fit} if is_new else {}) | {"info": self.info}
        content = save(weights, {"unetpp": json.dumps(about, allow_nan=False)})
        seal = hashlib.sha256(content).hexdigest()
        Path(path).write_bytes(content.replace(UNSEALED.encode(), seal.encode(), 1))


def load_model(path: str | Path) -> Trained:
    """Read a file of `Trained.save`, or a folder with `model.safetensors`, after checking its seal.

    Also reads files of earlier versions (`unetpp.models.older_files`). Runs no code of the file's author.

    Raises:
        UserError: no such file, not a model file, a damaged one, or non-finite weights.
    """
    file = find_file(path)
    found = _read(file)
    network = _build(file, found.config, found.weights)
    return Trained(network, as_size(found.size), found.info, found.sha256, found.fit)


def _read(file: Path) -> Contents:
    if is_zip(file):
        return older_files.read_zip(file, FIX)
    about, content = read_sealed(file)
    if about is None:
        if (file.parent / older_files.CONFIG).is_file():
            return older_files.read_pair(file, FIX)
        raise UserError(f"{file}: found a safetensors file without a description of its network; {FIX}")
    weights = read_tensors(content, file, FIX)
    return Contents(dict(about.config), weights, about.size, dict(about.info), str(about.sha256), about.fit)


def _build(file: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> NestedUNet:
    """The network with these keyword arguments and exactly these tensors, in eval mode; allocates no weights."""
    try:
        with torch.device("meta"):
            network = NestedUNet(**config)
    except Exception as error:
        if config.get("encoder") and isinstance(error, UserError):  # such as timm that is not installed
            raise UserError(f"{file}: {error}") from None
        raise UserError(f"{file}: the network that it describes cannot be built ({said(error)}); {FIX}") from None
    wanted, found = (
        {key: f"{tuple(value.shape)} {value.dtype}" for key, value in each.items()}
        for each in (network.state_dict(), weights)
    )
    for key in wanted | found:
        if (one := found.get(key)) != (other := wanted.get(key)):
            raise UserError(
                f"{file}: {key}: found {one or 'no such tensor'}; expected {other or 'none'}, as the file "
                f"describes the network; {FIX}"
            )
        if not weights[key].isfinite().all():
            raise UserError(f"{file}: {key}: found non-finite weights, with which a network cannot predict; {FIX}")
    if any(name not in wanted for name, _ in network.named_buffers()):
        with torch.random.fork_rng([]):  # some encoders draw random buffers when they are built
            network = NestedUNet(**config)
    network.load_state_dict(weights, assign=True)
    return network.eval()
