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
    size: int | Size | None  # px that images were resized to for training, if they were; a pair once it is made
    info: dict[str, Any] = field(default_factory=dict)  # where it comes from: params, hashes, epoch
    sha256: str | None = None  # of the file that it was read from
    fit: Fit = "stretch"  # how they were resized

    def __post_init__(self):
        object.__setattr__(self, "size", as_size(self.size))

    @property
    def about(self) -> About:
        """What it takes and gives."""
        return About(self.network.config(), self.size, self.info, self.sha256, self.fit)

    @property
    def frame(self) -> Frame | None:
        """What whole images are brought to, if to anything."""
        return self.about.frame

    @property
    def classes(self) -> list[str]:
        """Names of the classes that count (`About.classes`)."""
        return self.about.classes

    @property
    def names(self) -> list[str]:
        """What the values 0, 1 ... of a mask mean (`About.names`)."""
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
        """The weighted mean of the probabilities of several heads, by default of all alike, in eval mode.

        The network is pruned to the deepest of them, so that it costs no more than that depth and its heads.

        Raises:
            UserError: a depth at which it has no head, or weights that are not above 0.
        """
        heads = dict.fromkeys(self.depths, 1.0) if heads is None else heads
        Segmenter(self.network, heads)  # refuses what is no set of its heads
        network = prune(self.network, max(heads), keep_heads=len(self.depths) > 1)
        return Segmenter(network, heads, self.about.canvas).eval()

    def folded(self, depth: int | None = None, keep_heads: bool = False) -> "Trained":
        """The network pruned to a depth, by default the deepest, with batch norm folded: what is exported of it.

        Args:
            keep_heads: keep the heads of the shallower depths too, so that it can still be pruned and averaged.

        Raises:
            UserError: it cannot be pruned to that depth.
        """
        depth = self.network.depth if depth is None else depth
        network = fold(prune(self.network, depth, keep_heads and len(self.depths) > 1))
        return replace(self, network=network, sha256=None)

    def save(self, path: str | Path) -> None:
        """Write the file; the caller sees to it that it appears whole. The same network gives the same bytes."""
        weights = {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}
        from safetensors.torch import save  # late: a network is used without files, too

        # The seal first, where it is the first run of so many zeros.
        size = plain(self.size)
        is_new = isinstance(size, list) or self.fit != "stretch"
        number = 6 if self.network.targets != MASK else 5 if self.network.encoder else 4 if is_new else 3
        about = {"seal": UNSEALED, "format": number, "network": self.network.config(), "size": size}
        about |= ({"fit": self.fit} if is_new else {}) | {"info": self.info}
        content = save(weights, {"unetpp": json.dumps(about, allow_nan=False)})
        seal = hashlib.sha256(content).hexdigest()
        Path(path).write_bytes(content.replace(UNSEALED.encode(), seal.encode(), 1))


def load_model(path: str | Path) -> Trained:
    """Read what `Trained.save` wrote, after its seal was checked: a file, or a folder with `model.safetensors`.

    Also what earlier versions wrote (`unetpp.models.older_files`). Runs no code of the file's author.

    Raises:
        UserError: no such file, not such a file, a damaged one, or weights that are not finite.
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
        raise UserError(f"{file}: found a safetensors file that says nothing of its network; {FIX}")
    weights = read_tensors(content, file, FIX)
    return Contents(dict(about.config), weights, about.size, dict(about.info), str(about.sha256), about.fit)


def _build(file: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> NestedUNet:
    """The network of these keywords around these very tensors, in eval mode; nothing is allocated for it."""
    try:
        with torch.device("meta"):
            network = NestedUNet(**config)
    except Exception as error:
        if config.get("encoder") and isinstance(error, UserError):  # such as timm that is not installed
            raise UserError(f"{file}: {error}") from None
        raise UserError(f"{file}: it names a network that cannot be built ({said(error)}); {FIX}") from None
    wanted, found = (
        {key: f"{tuple(value.shape)} {value.dtype}" for key, value in each.items()}
        for each in (network.state_dict(), weights)
    )
    for key in wanted | found:
        if (one := found.get(key)) != (other := wanted.get(key)):
            raise UserError(
                f"{file}: {key}: found {one or 'no such tensor'}; expected {other or 'none'}, of the network that the "
                f"file names; {FIX}"
            )
        if not weights[key].isfinite().all():
            raise UserError(f"{file}: {key}: found weights that are not finite; such a network answers nothing; {FIX}")
    if any(name not in wanted for name, _ in network.named_buffers()):
        with torch.random.fork_rng([]):  # of some encoders, which compute buffers as they are built
            network = NestedUNet(**config)
    network.load_state_dict(weights, assign=True)
    return network.eval()
