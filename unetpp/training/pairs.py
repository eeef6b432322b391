"""Your own images and masks in the form of a split: arrays, tensors, or any sequence of pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from unetpp.data.crops import find_spots
from unetpp.data.resized import resize_sample
from unetpp.data.scaling import find_limits
from unetpp.errors import UserError
from unetpp.images.frame import Frame
from unetpp.images.pixels import convert
from unetpp.inference.predictor import as_trained
from unetpp.network.masks import IGNORE, find_values
from unetpp.network.model import NestedUNet

Dataset = Any  # a sequence of (image, mask), or a tuple of two: images and masks, as arrays or lists
MANY = (list, np.ndarray, Tensor)


@dataclass(frozen=True)
class Whole:
    """How training uses whole images."""

    batch_size: int
    quarter_turns: bool


def read_dataset(
    dataset: Dataset,
    network: NestedUNet,
    name: str,
    frame: Frame | None = None,
    whole: Whole | None = None,
) -> Any:
    """Return a prepared split unchanged, and wrap anything else in `Pairs`, with these arguments."""
    return dataset if hasattr(dataset, "moments") else Pairs(dataset, network, name, frame, whole)


class Pairs:
    """A sequence of pairs with the methods of `unetpp.data.arrow_split.Split` that training uses.

    A pair is read when it is needed, and once per batch that contains it, so that a dataset may augment at random.

    Args:
        dataset: a sequence whose items are (image, mask); or a tuple (images, masks) of two arrays (N, ...) or lists.
            Images are (H, W, C), (C, H, W) or (H, W), as for `unetpp.Predictor`; masks are (H, W), with the values of
            `unetpp.network.masks`.
        network: images and masks must have its channels and classes.
        name: how messages refer to the dataset.
        frame: the frame that whole images are brought to; None leaves their size.
        whole: how whole images are used if there are no crops; images that do not fit are refused.

    Raises:
        UserError: not such a dataset; when an item is read: shapes, types or values that do not fit.
    """

    def __init__(
        self,
        dataset: Dataset,
        network: NestedUNet,
        name: str,
        frame: Frame | None = None,
        whole: Whole | None = None,
    ):
        if isinstance(dataset, tuple) and len(dataset) == 2 and all(isinstance(one, MANY) for one in dataset):
            images, masks = dataset
            if len(images) != len(masks):
                raise UserError(
                    f"{name}: found {len(images)} images and {len(masks)} masks; expected one mask per image"
                )
            dataset = list(zip(images, masks, strict=True))
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise UserError(
                f"{name}: found {type(dataset).__name__}; expected a sequence of (image, mask), or (images, masks) as "
                "arrays: list(...) turns a generator into a sequence"
            )
        if not len(dataset):
            raise UserError(f"{name}: found no image; expected (image, mask) pairs")
        self.path, self._dataset, self._network = name, dataset, network
        self._frame, self._whole = frame, whole
        self._shape: tuple[int, ...] | None = None  # of the previous images, if all must have one shape
        self._last: tuple[int, tuple[np.ndarray, np.ndarray, tuple[float, float]]] | None = None

    def __len__(self) -> int:
        return len(self._dataset)

    def id(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) uint8, uint16 or float32 and mask (H, W) uint8."""
        self._last = None  # a dataset that augments at random returns another pair each time
        return self._read(index)[:2]

    def limits(self, index: int) -> tuple[float, float]:
        return self._read(index)[2]

    def moments(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, _, (low, high) = self._read(index)
        pixels, extent = image.reshape(-1, image.shape[2]).astype(np.float64), high - low or 1.0
        mean, std = (pixels.mean(axis=0) - low) / extent, pixels.std(axis=0) / extent
        return mean.astype(np.float32), std.astype(np.float32)

    def instances(self, index: int) -> None:
        """None: pairs have no object numbers, so connected pixels of a class are an object."""

    def spots(self, index: int) -> list[np.ndarray]:
        return find_spots(self._read(index)[1], self._network.multilabel, self._network.background)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
        if self._last is None or self._last[0] != index:
            self._last = index, self._checked(index)
        return self._last[1]

    def _checked(self, index: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
        where, pair = f"{self.path}[{index}]", self._dataset[index]
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise UserError(f"{where}: found {type(pair).__name__}; expected (image, mask)")
        mask = _read_mask(pair[1], self._network, where)
        image, limits = _read_image(pair[0], mask.shape, self._network.in_channels, where)
        if self._frame is not None:
            image, mask = resize_sample(image, mask, self._frame, self._network.num_classes, self._network.multilabel)
        if self._whole is not None and (self._frame is None or self._frame.canvas is None):
            self._check_whole(self._whole, mask.shape, where)
        return image, mask, limits

    def _check_whole(self, whole: Whole, shape: tuple[int, ...], where: str) -> None:
        """Check that whole images fit into one batch, and their sides into the network's pooling."""
        step = 2**self._network.depth
        if whole.batch_size != 1 and self._shape not in (None, shape):
            raise UserError(
                f"{where}: found an image of {_px(shape)} px after one of {_px(self._shape)}; expected one size in a "
                "batch: set crop_px, or batch_size=1"
            )
        if any(side % step for side in shape):
            fits = max(step, min(shape) // step * step)
            raise UserError(
                f"{where}: found an image of {_px(shape)} px; a network of depth {self._network.depth} trains on sides "
                f"divisible by {step}: set crop_px={fits}"
            )
        if whole.quarter_turns and shape[0] != shape[1]:
            raise UserError(
                f"{where}: found an image of {_px(shape)} px, whose shape a quarter turn would change: set "
                "quarter_turns=False, or crop_px"
            )
        self._shape = shape


def _px(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _read_mask(mask: Any, network: NestedUNet, where: str) -> np.ndarray:
    """(H, W) uint8, whose values are classes of the network."""
    found = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if found.ndim == 3 and 1 in (found.shape[0], found.shape[2]):
        found = found.squeeze(0 if found.shape[0] == 1 else 2)
    if found.ndim != 2 or 0 in found.shape or found.dtype.kind not in "biu":
        raise UserError(
            f"{where}: found a mask of shape {found.shape} and type {found.dtype}; expected (H, W) whole numbers or "
            "bool: for one plane per class use mask.argmax, for probabilities mask > 0.5"
        )
    classes = 2**network.num_classes if network.multilabel else max(2, network.num_classes)
    low, high = int(found.min()), int(found.max())
    if low < 0 or high > IGNORE or any(value >= classes and value != IGNORE for value in find_values(_bytes(found))):
        fix = "use mask > 0" if classes == 2 else "correct it, or use a network with more classes (num_classes)"
        raise UserError(
            f"{where}: found mask values from {low} to {high}; expected 0 to {classes - 1}; {IGNORE} means "
            f"unlabelled: {fix}"
        )
    if classes == 2 and high == IGNORE and not (found == 1).any():
        raise UserError(
            f"{where}: found a mask of 0 and {IGNORE}, where {IGNORE} means unlabelled; expected 0 and 1: use mask > 0"
        )
    return _bytes(found)


def _bytes(mask: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(mask, np.uint8)


def _read_image(
    image: Any, shape: tuple[int, ...], channels: int, where: str
) -> tuple[np.ndarray, tuple[float, float]]:
    """(H, W, channels) uint8, uint16 or float32 of the mask's (H, W), and the values that are scaled to 0 and 1."""
    is_tensor = isinstance(image, Tensor)
    found = image.detach().cpu().numpy() if is_tensor else np.asarray(image)
    placed = found[..., None] if found.ndim == 2 else found
    if placed.ndim == 3 and placed.shape[:2] != shape and placed.shape[1:] == shape:
        placed = np.moveaxis(placed, 0, 2)
    if placed.ndim != 3 or placed.shape[:2] != shape:
        raise UserError(
            f"{where}: found an image of shape {found.shape} and a mask of {_px(shape)} px; expected (H, W, C), "
            f"(C, H, W) or (H, W) of the mask's size"
        )
    if placed.shape[2] != channels and {placed.shape[2], channels} != {1, 3}:
        raise UserError(
            f"{where}: found an image with {placed.shape[2]} channels; expected {channels}: image[:, :, :3] drops "
            "alpha, or build the network with other in_channels"
        )
    kept = convert(as_trained(placed), channels)
    if is_tensor and kept.dtype == np.float32 and kept.min() >= 0 and kept.max() <= 1:
        return kept, (0.0, 1.0)  # as Predictor takes tensors
    return kept, find_limits(kept)
