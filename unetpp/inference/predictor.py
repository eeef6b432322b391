"""Arrays in, probabilities and masks out: a trained network as a function of arbitrary images."""

import math
from typing import TYPE_CHECKING, cast

import numpy as np

from unetpp.engines.engine import Engine
from unetpp.engines.family import Family, Heads, as_family, choose, open_engine
from unetpp.errors import UserError
from unetpp.images.pixels import as_float32, convert
from unetpp.inference.instances import separate
from unetpp.inference.tiles import predict_resized, to_mask, to_own_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unetpp.models.model_file import Trained
    from unetpp.network.model import NestedUNet


BATCH_PIXELS = 2**19  # per batch; large images are computed one by one
USUAL_PX = 256  # side of the images for which "auto" chooses, if training did not resize images


class Predictor:
    """A trained network, ready for images of any size. `unetpp predict` uses it, too.

        predictor = unetpp.Predictor(unetpp.load("models/train"), depth=2)
        mask = predictor.mask(image)

    Images are numpy arrays (H, W, C), (H, W) or (N, H, W, C), or tensors (C, H, W) or (N, C, H, W) with floats in
    [0, 1]. Arrays are scaled as in training: uint8 and uint16 by the range of the type, all other numbers as float32
    by the range of the image itself; bool becomes 0 and 255. For a network with three channels, grey images are
    repeated; for a network with one channel, RGB is converted to grey. Otherwise the number of channels must be the
    network's. If training resized or padded whole images, so does this class, and results have the image's own size.
    Large images are predicted in tiles (`unetpp.inference.tiles`).

    Args:
        model: the result of `load`, or a network, whose weights are copied; the result of `find_family`, which does not
            need torch; or an open engine.
        depth: the depth to prune to, by default the deepest.
        heads: average these heads instead: weights by depth, such as {2: 1, 4: 3}, or "mean" for equal weights.
        device: the device for torch, such as "cuda"; by default the device of the model.
        engine: "torch", another engine of docs/engines.md, or "auto" for the fastest engine here that is exact enough.
            By default torch in eager mode and fp32, the reference for all other engines; for a family torch, or else
            the first runtime that is installed.

    Attributes:
        why: the reason for the engine, in one line, if "auto" chose it.

    Raises:
        UserError: a depth or heads that the model does not have, or both; an engine that is not available.
    """

    def __init__(
        self,
        model: "Trained | NestedUNet | Family | Engine",
        depth: int | None = None,
        *,
        heads: Heads | None = None,
        device: "str | torch.device | None" = None,
        engine: str | None = None,
    ):
        if depth is not None and heads is not None:
            raise UserError(f"depth {depth} is one head and heads {heads} are several: pass only one of them")
        self.why = ""  # one line, if the engine was chosen here
        if hasattr(model, "takes_parts"):
            self.engine = cast(Engine, model)
        elif engine is None and not isinstance(model, Family):
            self.engine = _eager(_as_trained(model), depth, heads, device)
        else:
            family = model if isinstance(model, Family) else as_family(_as_trained(model))
            chosen = family.about.depth if depth is None else depth
            if engine is None or (engine == "auto" and heads):
                engine = "torch" if heads else family.usual(chosen)
            elif engine == "auto":
                size = family.about.frame.size if family.about.frame else (USUAL_PX, USUAL_PX)
                engine, self.why = choose(family, chosen, size)
            self.engine = open_engine(family, depth, engine, heads=heads, device=device)
        self.about = self.engine.about
        self.depth, self.classes, self.names = self.about.depth, self.about.classes, self.about.names
        self.in_channels, self.num_classes = self.about.in_channels, self.about.num_classes
        self.multilabel = self.about.multilabel

    def __repr__(self) -> str:
        return f"Predictor({self.about.describe((self.depth,))})"

    def __call__(self, images: "np.ndarray | Tensor") -> np.ndarray:
        return self.probs(images)

    def probs(self, images: "np.ndarray | Tensor") -> np.ndarray:
        """Probabilities (num_outputs, H, W) float32 of an image, or (N, num_outputs, H, W) of a batch.

        With one class, the channel is the probability of the foreground; otherwise there is a channel per class
        (`names`) or label. A network for instances adds boundary and distance, all from 0 to 1.

        Raises:
            UserError: images of another shape, type or range.
        """
        batch, limits, whole = self._read(images)
        shape = batch[0].shape[:2]
        step = max(1, BATCH_PIXELS // math.prod(self.about.frame.size if self.about.frame else shape))
        groups = (batch[start : start + step] for start in range(0, len(batch), step))
        each = [to_own_size(predict_resized(self.engine, group, limits), shape) for group in groups]
        probs = each[0] if len(each) == 1 else np.concatenate(each)
        return probs if whole else probs[0]

    def mask(self, images: "np.ndarray | Tensor") -> np.ndarray:
        """The mask (H, W) uint8 of an image, or (N, H, W) of a batch: 0 and 1, class indices, or one bit per label.

        Raises:
            UserError: as in `probs`.
        """
        probs = self.probs(images)
        masks = to_mask(probs if probs.ndim == 4 else probs[None], self.num_classes, self.multilabel)
        return masks if probs.ndim == 4 else masks[0]

    def instances(self, images: "np.ndarray | Tensor") -> np.ndarray:
        """Separated objects, numbered from 1 on, 0 for none: (H, W) int32 of an image, or (N, H, W) of a batch.

        Raises:
            UserError: as in `probs`; a network without boundary and distance; scikit-image is not installed.
        """
        separation = self.about.separation()
        if separation is None:
            raise UserError(
                "found a network with only the target mask; expected mask, boundary and distance: train with "
                "model.targets=[mask,boundary,distance], or use the connected components of its mask"
            )
        probs = self.probs(images)
        each = probs if probs.ndim == 4 else probs[None]
        numbers = [separate(one, self.num_classes, separation, background=self.about.background) for one in each]
        return np.stack(numbers) if probs.ndim == 4 else numbers[0]

    def _read(self, images: "np.ndarray | Tensor") -> tuple[list[np.ndarray], tuple[float, float] | None, bool]:
        """The images (H, W, C), the values that become 0 and 1 (None: each image's own), and whether it was a batch."""
        if hasattr(images, "is_floating_point"):  # a tensor; torch need not be installed
            return self._read_tensor(images)  # pyright: ignore[reportArgumentType]
        if not isinstance(images, np.ndarray):
            raise UserError(
                f"found images of type {type(images).__name__}; expected a numpy array or a tensor: "
                "np.asarray(image), and np.stack for a list of images of one size"
            )
        if np.ma.is_masked(images):
            raise UserError("found a masked array; expected a value for every pixel: images.filled(VALUE)")
        images = np.asarray(images)  # decoders write into other memory than that of an np.matrix
        if images.ndim not in (2, 3, 4) or 0 in images.shape:
            raise UserError(
                f"found an array of shape {images.shape}; expected (H, W), (H, W, C) or (N, H, W, C), without sides "
                "of 0"
            )
        batch = {2: images[None, ..., None], 3: images[None], 4: images}[images.ndim]
        channels = batch.shape[3]
        if channels != self.in_channels and {channels, self.in_channels} != {1, 3}:
            hint = "channels come last: images[:, :, :3] drops alpha, np.moveaxis(images, -3, -1) moves them"
            raise UserError(
                f"found an array of shape {images.shape}, {channels} channels; expected {self._channels}: {hint}"
            )
        return [convert(as_trained(image), self.in_channels) for image in batch], None, images.ndim == 4

    def _read_tensor(self, images: "Tensor") -> tuple[list[np.ndarray], tuple[float, float] | None, bool]:
        shape = tuple(images.shape)
        if images.ndim not in (3, 4) or 0 in shape or shape[-3] != self.in_channels:
            raise UserError(
                f"found a tensor of shape {shape}; expected (C, H, W) or (N, C, H, W) with {self.in_channels} channels"
                ": permute(2, 0, 1) moves the channels of (H, W, C) to the front"
            )
        if not images.is_floating_point():
            raise UserError(
                f"found a tensor of {images.dtype}; expected floats in [0, 1]: divide it by the range of its type, or "
                "pass a numpy array (H, W, C)"
            )
        images = images.detach()
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise UserError(f"found a tensor with values from {low:g} to {high:g}; expected floats in [0, 1]: scale it")
        batch = (images if images.ndim == 4 else images[None]).float().cpu().permute(0, 2, 3, 1).numpy()
        return list(batch), (0.0, 1.0), images.ndim == 4

    @property
    def _channels(self) -> str:
        return {1: "1 (grey) or 3 (RGB)", 3: "3 (RGB) or 1 (grey)"}.get(self.in_channels, str(self.in_channels))


def _as_trained(model: object) -> "Trained":
    from unetpp.models.model_file import Trained  # late: families do not need torch
    from unetpp.network.model import NestedUNet

    if not isinstance(model, Trained | NestedUNet):
        raise UserError(
            f"Predictor: found a model of type {type(model).__name__}; expected what unetpp.load(path) or "
            "unetpp.find_family(path) returns, or a NestedUNet"
        )
    return Trained(model, None) if isinstance(model, NestedUNet) else model


def _eager(trained: "Trained", depth: int | None, heads: Heads | None, device: "str | torch.device | None") -> Engine:
    from unetpp.engines.torch_engine import TorchEngine

    made = trained.segmenter(depth) if heads is None else trained.ensemble(None if heads == "mean" else heads)
    return TorchEngine(made, trained.about.at(made.network.depth), device or trained.device)


def as_trained(image: np.ndarray) -> np.ndarray:
    """Convert (H, W, C) of any type to the type that a file of such pixels is decoded to: uint8, uint16 or float32."""
    if image.dtype.kind == "u" and image.dtype.itemsize <= 2:
        return image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.dtype == np.bool_:
        return image * np.uint8(255)
    if image.dtype.kind not in "iuf":
        raise UserError(f"found an array of {image.dtype}; expected whole numbers, floats or bool")
    try:
        return as_float32(image)
    except ValueError as error:
        raise UserError(f"{error}: replace such values by one that occurs in the image") from None
