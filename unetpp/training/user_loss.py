"""The loss and the weights of classes that a caller of `unetpp.fit` gives, checked before training."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unetpp.errors import UserError
from unetpp.network.losses import WEIGHTED
from unetpp.network.model import NestedUNet


def own_loss(loss: Callable[[tuple[Tensor, ...], Tensor], Tensor]) -> Callable[[tuple[Tensor, ...], Tensor], Tensor]:
    """A user's loss in the form that `TrainStep` needs: one number per image."""

    def each(logits: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        found = loss(tuple(one.float() for one in logits), mask)
        if not isinstance(found, Tensor) or found.shape not in ((), (len(mask),)):
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"loss: found {what}; expected a tensor: the mean over the batch (), or one number per image "
                f"({len(mask)},): use .mean(), or .mean(dim=(1, 2)) for (N, H, W)"
            )
        return found.expand(len(mask)) if found.ndim == 0 else found

    return each


def check_weights(weights: Sequence[float], loss: object, network: NestedUNet) -> Tensor:
    """The weights of classes, refused where they would change nothing, or not what they seem to."""
    if callable(loss) or loss not in WEIGHTED or network.multilabel:
        found = "your own loss" if callable(loss) else "multilabel" if network.multilabel else loss
        raise UserError(
            f"class_weights: not used with {found}; expected loss={' or '.join(WEIGHTED)} and exclusive classes"
        )
    if len(weights) != (expected := max(2, network.num_classes)):
        raise UserError(
            f"class_weights: found {len(weights)} weights; expected {expected}, one for each class, the background's "
            "first where there is one"
        )
    return torch.tensor(weights, dtype=torch.float32)
