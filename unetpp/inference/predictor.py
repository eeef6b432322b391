"""Arrays in, probabilities and masks out: a trained network as a function of images as one has them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from unetpp.engines.engine import Engine
from unetpp.errors import UserError
from unetpp.images.pixels import as_float32, convert
from unetpp.inference.tiles import predict_image, to_mask

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unetpp.models.model_file import Trained
    from unetpp.network.model import NestedUNet


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
        model: what `load` returns, or a network, whose weights are copied; or an engine that is open already.
        depth: the depth to prune to, by default the deepest.
        heads: average these heads instead: weights by depth, such as {2: 1, 4: 3}, or "mean" for all alike.
        device: where torch runs it, such as "cuda"; by default where the model is.

    Raises:
        UserError: a depth or heads that the model does not have, or both.
    """

    def __init__(
        self,
        model: "Trained | NestedUNet | Engine",
        depth: int | None = None,
        *,
        heads: Mapping[int, float] | Literal["mean"] | None = None,
        device: "str | torch.device | None" = None,
    ):
        if depth is not None and heads is not None:
            raise UserError(f"depth {depth} is one head and heads {heads} are several: give one of the two")
        is_open = hasattr(model, "takes_parts")
        self.engine = cast(Engine, model) if is_open else _torch_engine(cast("Trained", model), depth, heads, device)
        self.about = self.engine.about
        self.depth, self.classes, self.names = self.about.depth, self.about.classes, self.about.names
        self.in_channels, self.num_classes = self.about.in_channels, self.about.num_classes
        self.multilabel = self.about.multilabel

    def __repr__(self) -> str:
        return f"Predictor({self.about.describe((self.depth,))})"

    def __call__(self, images: "np.ndarray | Tensor") -> np.ndarray:
        return self.probs(images)

    def probs(self, images: "np.ndarray | Tensor") -> np.ndarray:
        """Probabilities (num_classes, H, W) float32 of an image, (N, num_classes, H, W) of a batch.

        One channel is the foreground's probability, several are those of the classes (`names`), or one of each label.

        Raises:
            UserError: images of another shape, type or range.
        """
        batch, whole = self._read(images)
        probs = np.stack([predict_image(self.engine, image, limits) for image, limits in batch])
        return probs if whole else probs[0]

    def mask(self, images: "np.ndarray | Tensor") -> np.ndarray:
        """Masks (H, W) uint8 of an image, (N, H, W) of a batch: 0 and 1, class indices, or of labels their bits.

        Raises:
            UserError: as `probs`.
        """
        probs = self.probs(images)
        masks = to_mask(probs if probs.ndim == 4 else probs[None], self.multilabel)
        return masks if probs.ndim == 4 else masks[0]

    def _read(self, images: "np.ndarray | Tensor") -> tuple[list[tuple[np.ndarray, tuple[float, float] | None]], bool]:
        """Each image (H, W, C) with what is scaled to 0 and 1 (None: its own limits), and whether it was a batch."""
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
        return [(convert(as_trained(image), self.in_channels), None) for image in batch], images.ndim == 4

    def _read_tensor(self, images: "Tensor") -> tuple[list[tuple[np.ndarray, tuple[float, float] | None]], bool]:
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
        return [(image, (0.0, 1.0)) for image in batch], images.ndim == 4

    @property
    def _channels(self) -> str:
        return {1: "1 (grey) or 3 (RGB)", 3: "3 (RGB) or 1 (grey)"}.get(self.in_channels, str(self.in_channels))


def _torch_engine(
    model: "Trained | NestedUNet",
    depth: int | None,
    heads: Mapping[int, float] | Literal["mean"] | None,
    device: "str | torch.device | None",
) -> Engine:
    from unetpp.engines.torch_engine import TorchEngine  # late: other engines need no torch
    from unetpp.models.model_file import Trained
    from unetpp.network.model import NestedUNet

    if not isinstance(model, Trained | NestedUNet):
        raise UserError(
            f"Predictor: found a model of type {type(model).__name__}; expected what unetpp.load(path) returns, or "
            "a NestedUNet"
        )
    trained = Trained(model, None) if isinstance(model, NestedUNet) else model
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
