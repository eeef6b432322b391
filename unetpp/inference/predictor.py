"""Arrays in, probabilities and masks out: a trained network as a function of images as one has them."""

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


BATCH_PIXELS = 2**19  # of the images that an engine gets together; large ones go one by one
USUAL_PX = 256  # side of the images for which "auto" chooses, where training resized none


class Predictor:
    """A trained network, ready for images of any size; by it `unetpp predict` predicts, too.

        predictor = unetpp.Predictor(unetpp.load("models/train"), depth=2)
        mask = predictor.mask(image)

    Images are numpy arrays (H, W, C), (H, W) or (N, H, W, C), or tensors (C, H, W) or (N, C, H, W) with floats in
    [0, 1]. Arrays are scaled as training scales them: uint8 and uint16 by the range of the type, all other numbers as
    float32 by the range of the image itself; bool is 0 and 255. Grey images are repeated for a network of three
    channels, and RGB is weighted for a network of one; any other number must be the network's. Where training resized
    whole images, or padded them, so does this, and the answer has the image's own size. Large images are predicted by
    tiles (`unetpp.inference.tiles`).

    Args:
        model: what `load` returns, or a network, whose weights are copied; what `find_family` returns, which needs no
            torch; or an engine that is open already.
        depth: the depth to prune to, by default the deepest.
        heads: average these heads instead: weights by depth, such as {2: 1, 4: 3}, or "mean" for all alike.
        device: where torch runs it, such as "cuda"; by default where the model is.
        engine: what computes it: "torch" and the others of docs/engines.md, or "auto" for the fastest here of those
            that are exact enough; by default torch in eager mode and fp32, what others are compared with, and of a
            family torch, or the first runtime that is here.

    Raises:
        UserError: a depth or heads that the model does not have, or both; an engine that is not here.
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
        self.why = ""  # one line, where the engine was chosen here
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
        """Probabilities (num_outputs, H, W) float32 of an image, (N, num_outputs, H, W) of a batch.

        One channel is the foreground's probability, several are those of the classes (`names`), or one of each label;
        a network for instances adds boundary and distance.

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
        """Masks (H, W) uint8 of an image, (N, H, W) of a batch: 0 and 1, class indices, or of labels their bits.

        Raises:
            UserError: as `probs`.
        """
        probs = self.probs(images)
        masks = to_mask(probs if probs.ndim == 4 else probs[None], self.num_classes, self.multilabel)
        return masks if probs.ndim == 4 else masks[0]

    def instances(self, images: "np.ndarray | Tensor") -> np.ndarray:
        """Objects of a network that parts them, numbered from 1 on: (H, W) int32 of an image, (N, H, W) of a batch.

        Raises:
            UserError: as `probs`; a network of masks alone; scikit-image is not installed.
        """
        separation = self.about.separation()
        if separation is None:
            raise UserError(
                "found a network with the target mask alone; expected one with mask, boundary and distance: train with "
                "model.targets=[mask,boundary,distance], or take the connected pixels of its mask"
            )
        probs = self.probs(images)
        each = probs if probs.ndim == 4 else probs[None]
        numbers = [separate(one, self.num_classes, separation, background=self.about.background) for one in each]
        return np.stack(numbers) if probs.ndim == 4 else numbers[0]

    def _read(self, images: "np.ndarray | Tensor") -> tuple[list[np.ndarray], tuple[float, float] | None, bool]:
        """Each image (H, W, C), what is scaled to 0 and 1 (None: its own limits), and whether it was a batch."""
        if hasattr(images, "is_floating_point"):  # torch's, which need not be installed
            return self._read_tensor(images)  # pyright: ignore[reportArgumentType]
        if not isinstance(images, np.ndarray):
            raise UserError(
                f"found images of type {type(images).__name__}; expected a numpy array or a tensor: "
                "np.asarray(image), and np.stack for a list of images of one size"
            )
        if images.ndim not in (2, 3, 4) or 0 in images.shape:
            raise UserError(
                f"found an array of shape {images.shape}; expected (H, W), (H, W, C) or (N, H, W, C), and no side of 0"
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
                f"found a tensor of shape {shape}; expected (C, H, W) or (N, C, H, W) of {self.in_channels} channels: "
                "permute(2, 0, 1) moves the channels of (H, W, C) to the front"
            )
        if not images.is_floating_point():
            raise UserError(
                f"found a tensor of {images.dtype}; expected floats in [0, 1]: divide it by the range of its type, or "
                "give it as a numpy array (H, W, C)"
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
    from unetpp.models.model_file import Trained  # late: families need no torch
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
    """(H, W, C) of any type to that which a file of such pixels is decoded to: uint8, uint16 or float32."""
    if image.dtype in (np.uint8, np.uint16):
        return image
    if image.dtype == np.bool_:
        return image * np.uint8(255)
    if image.dtype.kind not in "iuf":
        raise UserError(f"found an array of {image.dtype}; expected whole numbers, floats or bool")
    try:
        return as_float32(image)
    except ValueError as error:
        raise UserError(f"{error}: replace them by a value that the image has") from None
