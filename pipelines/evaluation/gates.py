"""Gates on a model's behaviour: changes that should hardly affect its masks, each measured against a limit in params.

- flips: the image mirrored sideways, upside down, and turned by 90 degrees, each only if augmentation trained it; the
  mask, moved back, is compared with the plain one, and the worst counts. It is off, neither passed nor failed, if
  augmentation used none of these.
- shift: the image without its first few rows and columns; the mask is compared with that part of the plain one.
- brightness: the image brighter, darker, with less contrast, and with two gammas, clipped to its range; the mask of the
  worst change is compared with the plain one.
- empty: images of a uniform grey, from black to white; the largest share of pixels predicted as foreground. It is off,
  neither passed nor failed, if class 0 is a class like the others, or if most of the train pixels are foreground: then
  a uniform image has no right answer.

The first three are foreground IoUs, averaged over images, of two masks of the model itself: the true mask is not used,
so a weak model passes as well as a strong one if it is stable. A model that finds nothing in any image does not pass,
because there is nothing to compare.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.core.delivery_sections import Gates
from pipelines.evaluation.predictor import Predictor, batches
from unetpp.data.resized import Resized
from unetpp.data.scaling import scale
from unetpp.data.symmetries import Symmetry, group_of
from unetpp.images.frame import Size
from unetpp.scores import metrics

GREYS = (0.0, 0.25, 0.5, 0.75, 1.0)
FLIPS: dict[str, tuple[Symmetry, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {  # there and back
    "flip sideways": ((0, 0, 1), lambda image: image.flip(-1), lambda mask: mask.flip(-1)),
    "flip upside down": ((0, 1, 0), lambda image: image.flip(-2), lambda mask: mask.flip(-2)),
    "quarter turn": ((1, 1, 0), lambda image: image.rot90(1, (-2, -1)), lambda mask: mask.rot90(-1, (-2, -1))),
}
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {  # of images in [0, 1]
    "a quarter brighter": lambda image: image * 1.25,
    "a fifth darker": lambda image: image * 0.8,
    "30 % less contrast": lambda image: (image - _middle(image)) * 0.7 + _middle(image),
    "gamma 0.8": lambda image: image**0.8,
    "gamma 1.25": lambda image: image**1.25,
}


def check_gates(
    predict: Predictor, split: Resized, gates: Gates, size: Size, batch_size: int, foreground_share: float = 0.0
) -> dict[str, list[dict]]:
    """Measure every gate for every name on up to `gates.num_images` images, spread evenly over the split.

    Images have the size that the network sees, because gates test how stable the network is.

    Args:
        foreground_share: share of foreground in the annotated pixels of train.

    Returns:
        by name, a row per gate: name, value, limit, direction ("at least" or "at most" the limit), passed, what.
    """
    agreed: dict[tuple[str, str], list[Tensor]] = {}  # IoUs by name and change
    finding: set[str] = set()  # names that predict any foreground
    number = min(len(split), gates.num_images)
    trained = group_of((predict.trained.info.get("params") or {}).get("augment") or {})
    flips = [what for what, (symmetry, _, _) in FLIPS.items() if symmetry in trained]
    chosen = np.linspace(0, len(split) - 1, number).round().astype(int).tolist()
    for batch in batches(split, batch_size, chosen, what="gates, images"):
        image = torch.stack([scale(one) for one in batch.images])  # (n, C, H, W)
        plain = predict.masks_of(image)
        for change, (changed, undo) in _variants(image, gates.shift_px, flips).items():
            for name, mask in predict.masks_of(changed).items():
                agreed.setdefault((name, change), []).append(_agreement(predict, *undo(mask, plain[name])))
                if not predict.task[2] or mask.any() or plain[name].any():
                    finding.add(name)
    iou = {key: torch.cat(each).mean().item() if key[0] in finding else None for key, each in agreed.items()}
    off = ""
    if not predict.task[2]:
        off = "off: class 0 is a class like the others, so a uniform image has no right answer"
    elif foreground_share > 0.5:
        off = f"off: {foreground_share:.0%} of the train pixels are foreground, so it may be right in a uniform image"
    empty = dict.fromkeys(predict.names) if off else _find_on_nothing(predict, size)
    return {name: _rows(name, iou, empty[name], gates, number, flips, off) for name in predict.names}


def _middle(image: Tensor) -> Tensor:
    return image.mean(dim=(-1, -2, -3), keepdim=True)


def _variants(
    image: Tensor, shift_px: int, flips: Sequence[str]
) -> dict[str, tuple[Tensor, Callable[[Tensor, Tensor], tuple]]]:
    """By change: the changed images, and how to make their mask and the plain one comparable."""
    variants: dict[str, tuple[Tensor, Callable[[Tensor, Tensor], tuple]]] = {}
    for what in flips:
        _, there, back = FLIPS[what]
        variants[what] = there(image), lambda mask, plain, back=back: (back(mask), plain)
    step = min(shift_px, min(image.shape[-2:]) - 1)
    variants["shift"] = image[..., step:, step:], lambda mask, plain: (mask, plain[..., step:, step:])
    for what, change in CHANGES.items():
        variants[what] = change(image).clamp(0, 1), lambda mask, plain: (mask, plain)
    return variants


def _agreement(predict: Predictor, mask: Tensor, plain: Tensor) -> Tensor:
    """(n,) foreground IoU of two masks (n, H, W)."""
    return metrics.per_image_iou(metrics.confusion(mask, plain, *predict.task))


def _find_on_nothing(predict: Predictor, size: Size) -> dict[str, float]:
    """The largest share of foreground in a uniform image, by name."""
    channels = predict.heads.network.in_channels
    images = torch.stack([torch.full((channels, *size), grey) for grey in GREYS])
    masks = predict.masks_of(images)
    return {name: (mask > 0).double().mean(dim=(1, 2)).max().item() for name, mask in masks.items()}


def _rows(
    name: str,
    iou: Mapping[tuple[str, str], float | None],
    empty: float | None,
    gates: Gates,
    number: int,
    flips: Sequence[str],
    off: str,
) -> list[dict]:
    on = f"on {number} test {'image' if number == 1 else 'images'}"
    if iou[name, "shift"] is None:
        on += ", in none of which it finds anything"
    flip, worst = (min(each, key=lambda one: iou[name, one] or 0, default="") for each in (flips, CHANGES))
    moved = "off: augmentation neither mirrored nor turned images, so nothing is required for such images"
    if flip:
        moved = f"IoU of the masks of moved images with the plain masks, the worst of {', '.join(flips)}, {on}"
    return [
        _row("flips", iou.get((name, flip)), gates.flips, moved) | ({} if flip else {"passed": None}),
        _row("shift", iou[name, "shift"], gates.shift, f"the same for images moved by {gates.shift_px} px, {on}"),
        _row("brightness", iou[name, worst], gates.brightness, f"the same at the worst change ({worst}), {on}"),
        _row(
            "empty", empty, gates.empty, off or "share of foreground predicted in a uniform image, the worst of 5", True
        )
        | ({"passed": None} if off else {}),
    ]


def _row(name: str, value: float | None, limit: float, what: str, most: bool = False) -> dict:
    passed = value is not None and (value <= limit if most else value >= limit)
    direction = "at most" if most else "at least"
    return {"name": name, "value": value, "limit": limit, "direction": direction, "passed": passed, "what": what}
