"""NestedUNet: the UNet++ family, built and run by diagonals.

Node X[i, j] is at level i (resolution H / 2^i, width widths[i]) and position j of its skip pathway.
The diagonal i + j = k is exactly what depth k adds to depth k - 1, so a network of depth D contains
the networks of every smaller depth (UNet++, arXiv 1807.10165 and 1912.05074).
"""

import math
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unetpp.errors import UserError
from unetpp.network.batch_norm import BatchNorm
from unetpp.network.encoders import Pyramid
from unetpp.network.masks import FOR_INSTANCES, MASK, MAX_LABELS
from unetpp.network.upsampling import UPSAMPLINGS, DenseGradient, draw_weights

# The positions of the earlier nodes of its level that node X[i, j] reads. This table defines the family.
SKIPS = {
    "dense": lambda j: range(j),  # UNet++: all of them
    "short": lambda j: (j - 1,),  # UNet+: the nearest
    "encoder": lambda _j: (0,),  # UNet^e: the encoder's
    "plain": lambda _j: (0,),  # U-Net: the encoder's; the only nodes are the encoder and the last diagonal
}
MAX_DEPTH = 6

# Norm layers by width. Batch norm needs batches of some size; the others treat each image separately.
NORMS = {
    "batch": BatchNorm,
    "instance": lambda width: nn.InstanceNorm2d(width, affine=True),
    "group": lambda width: nn.GroupNorm(math.gcd(width, 8), width),  # 8 groups, or as many as divide the width
    "none": lambda _width: nn.Identity(),  # of an exported network: folded into convolutions (`unetpp.network.folding`)
}


class Block(nn.Module):
    """Two times 3x3 convolution, norm, ReLU, dropout. Keeps the spatial size."""

    def __init__(self, in_channels: int, width: int, norm: str = "batch", dropout: float = 0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm1 = NORMS[norm](width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = NORMS[norm](width)
        self.dropout = dropout
        for conv in (self.conv1, self.conv2):
            draw_weights(conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = F.relu(norm(conv(x)), inplace=True)
            if self.dropout > 0:
                x = F.dropout2d(x, self.dropout, self.training)
        return x


class NestedUNet(nn.Module):
    """UNet++ and its relatives.

    Args:
        widths: channels by level, at least two; the depth is `len(widths) - 1`, 1 to 6. With an encoder, the channels
            of all nodes that are not the encoder's.
        in_channels: channels of the image.
        num_classes: channels of the mask's logits: 1 for foreground and background, else one per class or label.
        skips: "dense" (UNet++), "short" (UNet+), "encoder" (UNet^e) or "plain" (U-Net).
        deep_supervision: a head at each depth; if False, only at the deepest.
        norm: "batch", "instance" or "group"; "none" for a network whose batch norm was folded away.
        upsampling: "bilinear_aligned" (as in the classic code), "bilinear" or "transposed".
        dropout: share of channels that are dropped after each convolution in training, from 0 to below 1.
        multilabel: what the channels mean to the losses and to `Segmenter`: labels, several of which may apply to a
            pixel (sigmoid), instead of exclusive classes (softmax). The network itself applies neither.
        background: of several classes, the first is the background and is left out of overlap losses and scores;
            if False, it is a class like the others.
        encoder: a timm network, such as "resnet34", whose feature maps replace the nodes X[i, 0]; at levels that it
            does not have, mostly level 0, the nodes stay our own.
        targets: the outputs of each head: ("mask",), or ("mask", "boundary", "distance") to separate objects, with one
            more channel for each of the two.

    Raises:
        UserError: illegal values, or a network with parameters that would not be trained.
    """

    def __init__(
        self,
        widths: tuple[int, ...] | list[int],
        in_channels: int = 3,
        num_classes: int = 1,
        skips: str = "dense",
        deep_supervision: bool = True,
        norm: str = "batch",
        upsampling: str = "bilinear_aligned",
        dropout: float = 0.0,
        multilabel: bool = False,
        background: bool = True,
        encoder: str | None = None,
        targets: tuple[str, ...] | list[str] = MASK,
    ):
        super().__init__()
        self.widths = tuple(widths)
        self.depth = len(self.widths) - 1
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.skips = skips
        self.deep_supervision = deep_supervision
        self.norm = norm
        self.upsampling = upsampling
        self.dropout = dropout
        self.multilabel, self.background = multilabel, background
        self.encoder = encoder
        self.targets = tuple(targets)
        self._check()
        self.depths = tuple(range(1, self.depth + 1)) if deep_supervision else (self.depth,)

        # By node, the nodes that no later node or head reads: without gradients their memory is then released.
        last = {read: node for node in self._order() for read in self._reads(*node)}
        kept = {(0, depth) for depth in self.depths}
        self._done = {node: [one for one in last if last[one] == node and one not in kept] for node in self._order()}

        # Activation checkpointing, in training only: nodes of this many top levels, which use most of the memory, keep
        # only their inputs and are recomputed for the gradient.
        self.checkpoint_levels = 0

        self.pyramid = None if encoder is None else Pyramid(encoder, in_channels, self.depth)
        theirs = self.pyramid.channels if self.pyramid else {}
        of = {(i, j): self.widths[i] for i, j in self._order()} | {(i, 0): theirs[i] for i in theirs}
        self.channels = of  # of each node (i, j)
        self.nodes, self.ups = nn.ModuleDict(), nn.ModuleDict()
        for i, j in self._order():
            if j == 0:
                channels = self.in_channels if i == 0 else of[i - 1, 0]
            else:
                self.ups[f"{i}_{j}"], channels = UPSAMPLINGS[upsampling](of[i + 1, j - 1], self.widths[i])
                channels += sum(of[i, s] for s in SKIPS[skips](j))
            if j > 0 or i not in theirs:
                self.nodes[f"{i}_{j}"] = Block(channels, self.widths[i], norm, dropout)
        self.heads = nn.ModuleDict({str(d): nn.Conv2d(self.widths[0], self.num_outputs, 1) for d in self.depths})

    @property
    def task(self) -> tuple[int, bool, bool]:
        """num_classes, multilabel and background, as `unetpp.network.masks` and `unetpp.scores` take them."""
        return self.num_classes, self.multilabel, self.background

    @property
    def num_outputs(self) -> int:
        """Channels of a head: first those of the mask, then one for each further target."""
        return self.num_classes + len(self.targets) - 1

    def _check(self) -> None:
        if not 1 <= self.depth <= MAX_DEPTH or any(not isinstance(w, int) or w < 1 for w in self.widths):
            raise UserError(
                f"widths: found {list(self.widths)}; expected 2 to {MAX_DEPTH + 1} positive whole numbers, "
                "the channels of each level"
            )
        if self.in_channels < 1 or self.num_classes < 1:
            raise UserError(
                f"in_channels is {self.in_channels} and num_classes is {self.num_classes}; both must be at least 1"
            )
        if not self.background and (self.multilabel or self.num_classes == 1):
            raise UserError("background is False, but one class or labels have no class 0: set it to True")
        if self.multilabel and self.num_classes > MAX_LABELS:
            raise UserError(f"num_classes: found {self.num_classes} labels; expected at most {MAX_LABELS}")
        if self.targets not in (MASK, FOR_INSTANCES):
            raise UserError(f"targets: found {list(self.targets)}; expected {list(MASK)} or {list(FOR_INSTANCES)}")
        if self.targets != MASK and self.multilabel:
            raise UserError("targets separate objects of classes, but labels may overlap: set targets to mask")
        for name, table in (("skips", SKIPS), ("norm", NORMS), ("upsampling", UPSAMPLINGS)):
            if getattr(self, name) not in table:
                raise UserError(f"{name}: found {getattr(self, name)!r}; expected one of {', '.join(table)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout: found {self.dropout}; expected a share of at least 0 and below 1")
        if self.skips == "plain" and self.deep_supervision and self.depth > 1:
            raise UserError("a plain U-Net has no shallow heads: set deep_supervision to False, or other skips")
        if self.skips == "encoder" and not self.deep_supervision and self.depth > 1:
            raise UserError(
                "without deep supervision the shallow decoders of UNet^e would never learn: "
                'set deep_supervision to True, or skips to "plain", which is the same network without them'
            )

    def _order(self) -> list[tuple[int, int]]:
        """The nodes (i, j), diagonal by diagonal, each from the encoder up to level 0."""
        plain = self.skips == "plain"
        return [
            (k - j, j) for k in range(self.depth + 1) for j in range(k + 1) if not plain or j == 0 or k == self.depth
        ]

    def _reads(self, i: int, j: int) -> list[tuple[int, int]]:
        """The nodes that X[i, j] reads: its skips, then the node below; for j = 0 the node above."""
        if j == 0:
            return [(i - 1, 0)] if i > 0 else []
        return [*((i, s) for s in SKIPS[self.skips](j)), (i + 1, j - 1)]

    def config(self) -> dict:
        """The keyword arguments that build this network again."""
        return {
            "widths": list(self.widths),
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "skips": self.skips,
            "deep_supervision": self.deep_supervision,
            "norm": self.norm,
            "upsampling": self.upsampling,
            "dropout": self.dropout,
            "multilabel": self.multilabel,
            "background": self.background,
        } | (
            # Keys that older files do not have are only written if needed.
            ({} if self.encoder is None else {"encoder": self.encoder})
            | ({} if self.targets == MASK else {"targets": list(self.targets)})
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Logits of each head, shallowest first.

        Args:
            image: (N, in_channels, H, W) float, standardised; H and W divisible by 2^depth.

        Returns:
            a logits tensor (N, num_outputs, H, W) for each depth in `self.depths`.

        Raises:
            UserError: sides that are not divisible by 2^depth; the message names the size to pad to.
        """
        height, width = image.shape[-2:]
        step = 2**self.depth
        if height % step != 0 or width % step != 0:
            raise UserError(
                f"the image is {height}x{width}, but a network of depth {self.depth} needs sides divisible by {step}: "
                f"pad it to {-(-height // step) * step}x{-(-width // step) * step}, as unetpp.Segmenter does"
            )
        maps = self.pyramid(image) if self.pyramid else {}
        x: dict[tuple[int, int], Tensor] = {}
        for i, j in self._order():
            if j == 0 and i in maps:
                x[i, 0] = maps.pop(i)  # (N, pyramid.channels[i], H/2^i, W/2^i)
                continue
            inputs = [x[node] for node in self._reads(i, j)]
            for node in self._done[i, j]:
                del x[node]
            if j == 0:
                inputs = [F.max_pool2d(inputs[0], 2) if inputs else image]  # (N, widths[i-1], H/2^i, W/2^i)
            if self.training and i < self.checkpoint_levels:
                x[i, j] = checkpoint(
                    self._node, i, j, *inputs, use_reentrant=False, context_fn=lambda i=i, j=j: self._contexts(i, j)
                )
            else:
                x[i, j] = self.nodes[f"{i}_{j}"](self._join(i, j, inputs))  # (N, widths[i], H/2^i, W/2^i)
        return tuple(self.heads[str(d)](x[0, d]) for d in self.depths)

    def _node(self, i: int, j: int, *inputs: Tensor) -> Tensor:
        """X[i, j], from its skips and the node below, or from one input for j = 0."""
        return self.nodes[f"{i}_{j}"](self._join(i, j, [*inputs]))

    def _join(self, i: int, j: int, inputs: list[Tensor]) -> Tensor:
        """Concatenate the skips and the upsampled node below; returns a single input unchanged. Empties the list."""
        if j > 0:
            above = self.ups[f"{i}_{j}"](inputs.pop(), inputs[0].shape[-2:])
            if self.training and not above.is_cuda:  # on which sums of slices are fast
                inputs[:] = [DenseGradient.apply(one) for one in inputs]
            inputs.append(above)
        joined = torch.cat(inputs, dim=1) if j > 0 else inputs[0]
        inputs.clear()  # otherwise they would stay in memory until the node is computed
        return joined

    def _contexts(self, i: int, j: int) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Contexts of a node's two computations: the second must not update the running statistics again."""

        @contextmanager
        def counted_already():
            # Only copies are updated, and then discarded. The buffers of a node are those of its norms.
            node = self.nodes[f"{i}_{j}"]
            kept = [(one, name, buffer) for one in node.modules() for name, buffer in one.named_buffers(recurse=False)]
            for owner, name, buffer in kept:
                setattr(owner, name, buffer.clone())
            try:
                yield
            finally:
                for owner, name, buffer in kept:
                    setattr(owner, name, buffer)

        return nullcontext(), counted_already()
