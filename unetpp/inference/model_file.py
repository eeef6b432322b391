"""The file that a trained network is kept in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unetpp.errors import UserError
from unetpp.inference.segmenter import Segmenter
from unetpp.network.model import NestedUNet
from unetpp.network.pruning import prune

FORMAT = 2


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

    def describe(self, depths: tuple[int, ...]) -> str:
        """One line: depths, widths, channels, classes, size."""
        widths = " ".join(map(str, self.network.widths[: max(depths) + 1]))
        kind = "labels" if self.network.multilabel else "classes"
        return (
            f"{', '.join(f'L{depth}' for depth in depths)}, widths {widths}, {self.network.in_channels} channels, "
            f"{kind} {', '.join(self.classes)}, {f'{self.size} px' if self.size else 'any size'}"
        )

    def __repr__(self) -> str:
        return f"Trained({self.describe(self.depths)})"

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
