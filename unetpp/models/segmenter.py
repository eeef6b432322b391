"""From pixels to probabilities in one module: standardising, padding, the network, its heads."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetpp.data.scaling import standardise
from unetpp.errors import UserError
from unetpp.images.frame import Size
from unetpp.network.masks import to_probs
from unetpp.network.model import NestedUNet

ENCODER_PX = 32  # some encoders (PVT) have windows of this many pixels


def pad_to_multiple(image: Tensor, multiple: int, canvas: Size | None = None) -> Tensor:
    """Pad (N, C, H, W) at the bottom and right to sides divisible by `multiple`, by repeating the edge.

    Args:
        canvas: height and width to which smaller images are padded.
    """
    height, width = image.shape[-2:]
    # Written as a product of whole steps, so that torch.export can prove divisibility for the network's pooling.
    # At least two steps: an export makes sizes constant that can be 1, which would happen at the deepest level.
    least = [max(2, -(-side // multiple)) for side in canvas or (0, 0)]
    rows: Any = torch.sym_max(least[0], (height + multiple - 1) // multiple)
    columns: Any = torch.sym_max(least[1], (width + multiple - 1) // multiple)
    return F.pad(image, (0, columns * multiple - width, 0, rows * multiple - height), mode="replicate")


class Segmenter(nn.Module):
    """A network with its pre- and postprocessing: images of any size in, probabilities out.

    `Predictor` runs this module, and exports contain it. For arrays of any type use `Predictor`.

    Args:
        network: by default only its deepest head is used; `prune` it first for a shallower one.
        heads: weights by depth of the heads whose probabilities are averaged instead, such as {2: 1, 4: 3}; they
            need not add up to 1.
        canvas: (height, width) to which smaller images are padded after standardising (`Frame`).

    Raises:
        UserError: a depth at which the network has no head, or weights that are not above 0.
    """

    def __init__(self, network: NestedUNet, heads: Mapping[int, float] | None = None, canvas: Size | None = None):
        super().__init__()
        self.network, self.canvas = network, canvas
        heads = {network.depth: 1.0} if heads is None else heads
        strange = sorted(set(heads) - set(network.depths))
        if strange or not heads or min(heads.values()) <= 0:
            raise UserError(
                f"heads: found {dict(heads)}; expected weights above 0 for some of the depths at which the network has "
                f"a head: {', '.join(map(str, network.depths))}"
            )
        total = sum(heads.values())
        self.shares = {network.depths.index(depth): weight / total for depth, weight in sorted(heads.items())}

    def forward(self, image: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Probabilities of an image batch.

        Args:
            image: (N, C, H, W) float in [0, 1], of any height and width.
            statistics: (N, C, 2), mean and standard deviation for standardising an image that is a part of a larger
                one; by default its own.

        Returns:
            (N, num_outputs, H, W): the probability of the foreground, or one per class or label; for a network for
            instances, followed by boundary and distance.
        """
        if statistics is None:
            return self.probs(standardise(image), self.canvas)
        return self.probs(standardise(image, statistics))

    def probs(self, standardised: Tensor, canvas: Size | None = None) -> Tensor:
        """`forward` of a standardised image."""
        height, width = standardised.shape[-2:]
        logits = self.heads(standardised, canvas)
        task = self.network.num_classes, self.network.multilabel
        each = [to_probs(logits[index], *task) * share for index, share in self.shares.items()]
        probs = each[0] if len(each) == 1 else torch.stack(each).sum(dim=0)
        # A crop, written as negative padding: an exported slice would keep a guard on whether it is the whole image.
        return F.pad(probs, (0, width - probs.shape[-1], 0, height - probs.shape[-2]))

    def logits(self, image: Tensor) -> tuple[Tensor, ...]:
        """The logits of every head of the network, each (N, num_outputs, H', W').

        H' and W' are those of the padded image; the image's own pixels are its first H rows and W columns.
        """
        return self.heads(standardise(image), self.canvas)

    def heads(self, standardised: Tensor, canvas: Size | None = None) -> tuple[Tensor, ...]:
        """`logits` of a standardised image."""
        least = ENCODER_PX if self.network.encoder else 0
        height, width = canvas or (0, 0)
        sides = max(least, height), max(least, width)
        return self.network(pad_to_multiple(standardised, 2**self.network.depth, sides))
