"""The quality of each depth's masks and probabilities, image by image, in one pass over a split."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluation.predictor import Batch, Predictor, batches
from unetpp.data.arrow_split import Split
from unetpp.data.resized import resize_mask
from unetpp.images.frame import Frame
from unetpp.network.masks import find_classes, first_class, to_mask, to_planes
from unetpp.scores import metrics
from unetpp.scores.boundaries import Boundary, compare_boundaries, has_outline
from unetpp.scores.calibration import choose_threshold, count_bins, count_by_threshold
from unetpp.scores.object_matching import Objects, match_objects

# The scores of an image in which no class occurs in mask or prediction: there is nothing, and nothing was found.
NOTHING = {"boundary_f1": 1.0, "hd95_px": 0.0, "object_f1": 1.0, "dsb_ap": 1.0}
OF_OUTLINES = ("boundary_f1", "hd95_px")


@dataclass
class Quality:
    """The scores of one name (a depth, or the mean) on N images with F scored classes, or labels."""

    counts: Tensor  # (N, K, 3), see metrics.confusion
    seen_counts: Tensor  # the same at the size that the network sees
    # For each key of NOTHING: (N, F), nan for a class in neither mask nor prediction, or without an outline.
    shapes: dict[str, np.ndarray]
    bins: Tensor  # (10, 3), see calibration.count_bins
    by_threshold: Tensor | None  # (N, T, F, 3), see calibration.count_by_threshold; None for classes
    best_iou: list[np.ndarray] = field(default_factory=list)  # for true objects, in the order of `TrueObjects`
    bordered: bool = True  # some true plane has an outline, or no class occurs at all

    def per_image(self) -> dict[str, np.ndarray]:
        """(N,) iou, dice and the scores of NOTHING, each the mean over the classes that occur.

        Scores of outlines are nan for an image whose classes have no outline that could be compared; and for every
        image if that holds for the whole split, since the mean would contain only false alarms in empty images.
        """
        iou, dice = metrics.per_image_iou(self.counts).numpy(), metrics.per_image_dice(self.counts).numpy()
        bare = np.asarray(np.isnan(self.shapes["object_f1"]).all(axis=1))
        others = {name: mean_over_classes(each, bare, NOTHING[name]) for name, each in self.shapes.items()}
        if not self.bordered:
            others |= {name: np.full(len(bare), np.nan) for name in OF_OUTLINES}
        return {"iou_image": iou, "dice_image": dice} | others


@dataclass
class TrueObjects:
    """The true objects: those numbered in the split, else the connected components of each class (`find_objects`)."""

    areas: list[np.ndarray] = field(default_factory=list)  # px
    ways: set[Literal["numbers", "components"]] = field(default_factory=set)  # how images of the split define them

    def diameters_px(self) -> np.ndarray:
        """(n,) diameters of the discs of the same areas."""
        return 2 * np.sqrt(np.concatenate([np.zeros(0), *self.areas]) / np.pi)


def mean_over_classes(values: np.ndarray, bare: np.ndarray, nothing: float) -> np.ndarray:
    """(N,) means of (N, F) values, ignoring nan; `nothing` if `bare`, (N,) bool, says that no class occurs."""
    known = ~np.isnan(values)
    means = np.nansum(values, axis=1) / np.maximum(1, known.sum(axis=1))
    return np.where(bare, nothing, np.where(known.any(axis=1), means, np.nan))


def mean_or_none(values: np.ndarray) -> float | None:
    """The mean of the values that are not nan, or None."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def measure_quality(
    predict: Predictor, split: Split, batch_size: int, tolerance_px: float
) -> tuple[dict[str, Quality], TrueObjects]:
    """Score every name on every image of a split at its own size, in the split's order, and list the true objects."""
    num_classes, multilabel, _ = predict.task
    first = first_class(*predict.task)
    num_foreground = num_classes - first
    num_counted = num_foreground + 1  # with the background
    found = {
        name: Quality(
            torch.zeros(len(split), num_counted, 3, dtype=torch.int64),
            torch.zeros(len(split), num_counted, 3, dtype=torch.int64),
            {score: np.full((len(split), num_foreground), np.nan) for score in NOTHING},
            torch.zeros(10, 3, dtype=torch.float64),
            torch.zeros(len(split), 19, num_classes, 3, dtype=torch.int64) if _has_threshold(predict) else None,
        )
        for name in predict.names
    }
    true_objects = TrueObjects()
    outlined, present = np.zeros((2, num_foreground), bool)
    for batch in batches(split, batch_size, what="test images"):
        truth, valid = to_planes(batch.mask, num_classes, multilabel)  # (n, num_classes, H, W)
        truth = truth[:, first:]
        numbers = [split.instances(index) for index in batch.indices]
        planes = _Planes(truth.numpy(), (~valid).numpy(), numbers, tolerance_px)
        counts = np.array([len(each.areas) for each in planes.objects]).reshape(-1, num_foreground).sum(axis=1)
        true_objects.ways |= {
            "components" if each is None else "numbers"
            for each, count in zip(numbers, counts, strict=True)
            if each is not None or count > 1  # a single object is the same by both
        }
        true_objects.areas += [each.areas for each in planes.objects]
        outlined |= planes.outlined.any(axis=0)
        present |= planes.present.any(axis=0)
        seen_mask = _seen(batch, predict.frame, num_classes, multilabel)
        for answer in predict.answers(batch.images):
            name, seen, probs = answer
            quality, mask_hat = found[name], to_mask(probs, num_classes, multilabel)
            quality.counts[batch.indices] = metrics.confusion(mask_hat, batch.mask, *predict.task)
            seen_hat, probs = to_mask(seen, num_classes, multilabel), probs[:, :num_classes]
            quality.seen_counts[batch.indices] = metrics.confusion(seen_hat, seen_mask, *predict.task)
            quality.bins += count_bins(probs[:, first:], truth, valid)
            if quality.by_threshold is not None:
                quality.by_threshold[batch.indices] = count_by_threshold(probs, truth, valid)
            hat = to_planes(mask_hat, num_classes, multilabel)[0][:, first:] & valid
            scores, best_iou = planes.compare(hat.numpy(), predict.numbers(answer))
            for score, values in scores.items():
                quality.shapes[score][batch.indices] = values
            quality.best_iou += best_iou
    for quality in found.values():
        quality.bordered = bool(outlined.any() or not present.any())
        for name in OF_OUTLINES:
            quality.shapes[name][:, present & ~outlined] = np.nan
    return found, true_objects


def _seen(batch: Batch, frame: Frame | None, num_classes: int, multilabel: bool) -> Tensor:
    """The true masks (N, h, w) of a batch at the size that the network sees, without padding."""
    masks = batch.mask.numpy()
    size = frame.sides(masks.shape[1:]) if frame else masks.shape[1:]
    if masks.shape[1:] == size:
        return batch.mask
    return torch.from_numpy(np.stack([resize_mask(mask, size, num_classes, multilabel) for mask in masks]))


class _Planes:
    """The true planes of a batch: their boundaries and objects, found once and compared with those of every name."""

    def __init__(
        self, truth: np.ndarray, ignored: np.ndarray, numbers: Sequence[np.ndarray | None], tolerance_px: float
    ):
        """From (n, F, H, W) and (n, 1, H, W) bool, and the numbers of the true objects, if any."""
        self.ignored = [each[0] if each.any() else None for each in ignored]
        self.shape, self.tolerance_px = truth.shape[:2], tolerance_px
        self.present = np.asarray(truth.any(axis=(2, 3)))
        self.boundaries = [Boundary.of(truth[at], self.ignored[at[0]]) for at in np.ndindex(*self.shape)]
        outlined = [has_outline(truth[at], self.ignored[at[0]]) for at in np.ndindex(*self.shape)]
        self.outlined = np.array(outlined).reshape(self.shape)
        own = [(truth[at], _own(numbers[at[0]], at[1])) for at in np.ndindex(*self.shape)]
        self.objects = [find_objects(*each) for each in own]
        self.known = [_known(*each) for each in own]

    def compare(
        self, hat: np.ndarray, numbers: Sequence[np.ndarray | None]
    ) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Each score of NOTHING as (n, F), and the IoU of each true object with its best prediction.

        Args:
            numbers: those of the predicted objects (H, W); None if the objects are connected components.
        """
        scores = {name: np.full(self.shape, np.nan) for name in NOTHING}
        best_iou = []
        for number, at in enumerate(np.ndindex(*self.shape)):
            matches = match_objects(find_objects(hat[at] & self.known[number], numbers[at[0]]), self.objects[number])
            best_iou.append(matches.best_iou)
            if not self.present[at] and not matches.num_hat:
                continue
            scores["object_f1"][at], scores["dsb_ap"][at] = matches.f1, matches.average_precision
            boundary, true = Boundary.of(hat[at], self.ignored[at[0]]), self.boundaries[number]
            if not self.outlined[at] if self.present[at] else boundary.tree is None:
                continue  # nothing to compare with
            compared = compare_boundaries(boundary, true, self.tolerance_px)
            scores["boundary_f1"][at], scores["hd95_px"][at] = compared.f1, compared.hd95_px
        return scores, best_iou


def find_objects(plane: np.ndarray, numbers: np.ndarray | None) -> Objects:
    """The objects of a class (H, W) bool: those numbered in (H, W), else its connected components."""
    return Objects.of(plane) if numbers is None else Objects.of_numbers(np.where(plane, numbers, 0))


def _known(plane: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
    """Where objects of a class (H, W) bool are known: not in foreground without a number, such as a crowd in COCO."""
    return np.ones_like(plane) if numbers is None else ~plane | (numbers > 0)


def score_batch(
    mask_hat: np.ndarray,
    numbers: Sequence[np.ndarray | None],
    batch: Batch,
    split: Split,
    task: tuple[int, bool, bool],
) -> np.ndarray:
    """(n, 2): IoU of each image, and AP if objects are numbered, else nan."""
    masks = torch.from_numpy(mask_hat)
    scores = np.full((len(masks), 2), np.nan)
    scores[:, 0] = metrics.per_image_iou(metrics.confusion(masks, batch.mask, *task)).numpy()
    if numbers[0] is not None:
        true = [split.instances(index) for index in batch.indices]
        scores[:, 1] = _image_aps(masks, batch.mask, numbers, true, task)
    return scores


def _image_aps(
    mask_hat: Tensor,
    mask: Tensor,
    numbers_hat: Sequence[np.ndarray | None],
    numbers: Sequence[np.ndarray | None],
    task: tuple[int, bool, bool],
) -> list[float]:
    """The average precision of each image of masks (N, H, W), as in `measure_quality`."""
    first, (truth, valid) = first_class(*task), to_planes(mask, *task[:2])
    hat = to_planes(mask_hat, *task[:2])[0] & valid
    found = []
    for index, (planes, planes_hat) in enumerate(zip(truth[:, first:].numpy(), hat[:, first:].numpy(), strict=True)):
        each = []
        for plane, (true, hat) in enumerate(zip(planes, planes_hat, strict=True)):
            own = _own(numbers[index], plane)
            objects_hat = find_objects(hat & _known(true, own), numbers_hat[index])
            if true.any() or len(objects_hat.areas):
                each.append(match_objects(objects_hat, find_objects(true, own)).average_precision)
        found.append(float(np.mean(each)) if each else NOTHING["dsb_ap"])
    return found


def number_mask(mask: np.ndarray, numbers: np.ndarray | None, background: bool) -> np.ndarray:
    """The objects of a mask (H, W) of classes, found for each class, as one plane of numbers (H, W) int32."""
    found, count = np.zeros(mask.shape, np.int32), 0
    for _, place in find_classes(mask, background=background):
        objects = find_objects(place, numbers)
        found[place] = np.where(objects.numbers[place] > 0, objects.numbers[place] + count, 0)
        count += len(objects.areas)
    return found


def _own(numbers: np.ndarray | None, plane: int) -> np.ndarray | None:
    """The numbers of one plane; each label has a plane of its own."""
    return numbers[plane] if numbers is not None and numbers.ndim == 3 else numbers


def _has_threshold(predict: Predictor) -> bool:
    """Whether there is a threshold: of several exclusive classes, the most probable one is taken."""
    num_classes, multilabel, _ = predict.task
    return num_classes == 1 or multilabel


def choose_thresholds(predict: Predictor, val: Split, batch_size: int) -> dict[str, int | None]:
    """The index in calibration.THRESHOLDS of the best threshold on val, by name; None if there is none to choose."""
    num_classes, multilabel, _ = predict.task
    if not _has_threshold(predict):
        return dict.fromkeys(predict.names)
    counts: dict[str, list[Tensor]] = {name: [torch.zeros(0, 19, num_classes, 3)] for name in predict.names}
    for batch in batches(val, batch_size, what="val images, for thresholds"):
        truth, valid = to_planes(batch.mask, num_classes, multilabel)
        for name, _, probs in predict.answers(batch.images):
            counts[name].append(count_by_threshold(probs[:, :num_classes], truth, valid))
    return {name: choose_threshold(torch.cat(each)) for name, each in counts.items()}
