"""The report's numbers, computed from scores image by image: a row per depth, by class, by object size, by kind.

A number that cannot be computed is None: the precision if nothing is predicted, the score of a class that does not
occur, scores of an outline that is hidden by unlabelled pixels.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan

import numpy as np

from pipelines.evaluation.bootstrap import bootstrap, interval
from pipelines.evaluation.quality import Quality, TrueObjects, mean_or_none
from unetpp.data.arrow_split import Split
from unetpp.scores import metrics
from unetpp.scores.calibration import THRESHOLDS, expected_calibration_error

WITH_INTERVALS = ("iou_image", "dice_image", "object_f1", "dsb_ap", "boundary_f1")
BY_KIND = ("iou_image", "dice_image", "boundary_f1", "object_f1")
SIZES = ("small", "medium", "large")


def resample(quality: Mapping[str, Quality], groups: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Resampled means of each score of WITH_INTERVALS by name; all of them paired."""
    images = {name: each.per_image() for name, each in quality.items()}
    return {
        score: bootstrap({name: values[score] for name, values in images.items()}, groups) for score in WITH_INTERVALS
    }


def summarise(
    quality: Mapping[str, Quality],
    means: Mapping[str, Mapping[str, np.ndarray]],
    thresholds: Mapping[str, int | None],
    deepest: str,
    multilabel: bool = False,
) -> dict[str, dict[str, float | None]]:
    """The quality of each name as flat numbers.

    Args:
        means: what `resample` returned.
        thresholds: indices in calibration.THRESHOLDS, chosen on val.
        deepest: the name relative to which differences are computed.
        multilabel: the classes are labels, without a background class.
    """
    rows = {}
    reference = metrics.per_image_iou(quality[deepest].counts).mean().item()
    reference_ap = quality[deepest].per_image()["dsb_ap"].mean()
    for name, each in quality.items():
        row: dict[str, float | None] = {}
        images = each.per_image()
        found = metrics.scores(each.counts)
        for score in (*WITH_INTERVALS[:2], *(one for one in found if one not in WITH_INTERVALS), *WITH_INTERVALS[2:]):
            row[score] = found[score] if score in found else mean_or_none(images[score])
            if score in WITH_INTERVALS:
                row[f"{score}_low"], row[f"{score}_high"] = map(_or_none, interval(means[score][name]))
        row["miou"] = metrics.mean_iou(each.counts, multilabel)
        row["difference_iou"] = found["iou_image"] - reference
        row["difference_ap"] = float(images["dsb_ap"].mean() - reference_ap)
        for score, short in (("iou_image", "iou"), ("dsb_ap", "ap")):
            difference = interval(means[score][name] - means[score][deepest])
            row[f"difference_{short}_low"], row[f"difference_{short}_high"] = difference
        precision, recall = metrics.precision_recall(each.counts)
        row["precision"], row["recall"] = mean_or_none(np.array(precision)), mean_or_none(np.array(recall))
        row["hd95_px"] = mean_or_none(images["hd95_px"])
        row["ece"] = expected_calibration_error(each.bins)
        row |= _at_threshold(each, thresholds[name])
        row["iou_image_seen"] = metrics.per_image_iou(each.seen_counts).mean().item()
        rows[name] = row
    return rows


def _at_threshold(quality: Quality, index: int | None) -> dict[str, float | None]:
    if index is None or quality.by_threshold is None:
        return {"threshold": None, "iou_image_at_threshold": None}
    iou = metrics.foreground_iou(quality.by_threshold[:, index]).mean().item()
    return {"threshold": THRESHOLDS[index], "iou_image_at_threshold": iou}


def by_class(quality: Mapping[str, Quality], classes: Sequence[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Scores of each class over the images where it occurs in the mask or in the prediction."""
    result: dict[str, dict] = {name: {} for name in classes}
    for name, each in quality.items():
        precision, recall = metrics.precision_recall(each.counts)
        columns = {
            "iou_image": metrics.per_class_iou(each.counts),
            "dice_image": metrics.per_class_dice(each.counts),
            "precision": precision,
            "recall": recall,
        }
        columns |= {score: [mean_or_none(column) for column in values.T] for score, values in each.shapes.items()}
        for index, one in enumerate(classes):
            values = ((score, column[index]) for score, column in columns.items())
            result[one][name] = {score: _or_none(value) for score, value in values}
    return result


def _or_none(value: float | None) -> float | None:
    """nan, which JSON does not have, as None."""
    return None if value is None or isnan(value) else value


def by_kind(quality: Mapping[str, Quality], kinds: Sequence[str]) -> dict[str, dict]:
    """Mean scores over the images of each kind, the most common kind first; empty if images have no kinds."""
    images = {name: each.per_image() for name, each in quality.items()}
    result: dict[str, dict] = {}
    for kind, number in sorted(Counter(filter(None, kinds)).items(), key=lambda item: (-item[1], item[0])):
        chosen = np.array([one == kind for one in kinds])
        means = {
            name: {score: mean_or_none(values[score][chosen]) for score in BY_KIND} for name, values in images.items()
        }
        result[kind] = {"num_images": number} | means
    return result


def by_size(
    quality: Mapping[str, Quality], true_objects: TrueObjects, limits: tuple[float, float] | None
) -> dict[str, dict]:
    """The share of true objects of each size that are found (IoU above 0.5), and the mean IoU of their best prediction.

    Args:
        limits: diameters in px from which objects are medium and large; None divides the objects into thirds.
    """
    diameters = true_objects.diameters_px()
    if limits is None and len(diameters):
        first, second = np.quantile(diameters, [1 / 3, 2 / 3]).tolist()
        limits = (first, second)
    edges = (None, *(limits or (None, None)), None)
    number = np.digitize(diameters, limits) if limits else np.zeros(0, dtype=int)
    best = {name: np.concatenate([np.zeros(0), *each.best_iou]) for name, each in quality.items()}
    result: dict[str, dict] = {}
    for index, size in enumerate(SIZES):
        chosen = number == index
        row: dict = {"num_objects": int(chosen.sum()), "from_px": edges[index], "to_px": edges[index + 1]}
        for name, iou in best.items():
            found = (mean_or_none((iou[chosen] > 0.5).astype(float)), mean_or_none(iou[chosen]))
            row[name] = dict(zip(("object_recall", "object_iou"), found, strict=True))
        result[size] = row
    return result


def image_rows(quality: Mapping[str, Quality], split: Split, groups: Sequence[str]) -> list[dict]:
    """The rows of images.csv: the size at which each image was scored; IoU, boundary F1, object F1 and AP by depth.

    If images have no kinds, there is no such column.
    """
    images = {name: each.per_image() for name, each in quality.items()}
    columns = (("iou", "iou_image"), ("boundary_f1", "boundary_f1"), ("object_f1", "object_f1"), ("ap", "dsb_ap"))
    return [
        {"id": id_}
        | ({"kind": kind} if kind else {})
        | {"group": group, "height": split.shape(index)[0], "width": split.shape(index)[1]}
        | {f"{column}_{name}": _rounded(images[name][score][index]) for column, score in columns for name in images}
        for index, (id_, kind, group) in enumerate(zip(split.ids, split.kinds, groups, strict=True))
    ]


def _rounded(value: float) -> float | None:
    return None if isnan(value) else round(float(value), 6)


def reliability_rows(metrics: dict) -> list[dict]:
    """The rows for `dvc plots`: one for each depth and bin of probabilities; an empty one if there are no bins."""
    empty = {"confidence": None, "accuracy": None, "share": None}
    bins = metrics.get("reliability") or {name: [empty] for name in metrics["depths"]}
    return [{"depth": name} | empty | one for name, found in bins.items() for one in found]


def class_ious(quality: dict[str, Quality], names: list[str]) -> dict[str, dict[str, float | None]]:
    """IoU of each class by name; None for a class that is in no test image and in no prediction."""
    return {
        name: {one: _or_none(iou) for one, iou in zip(names, metrics.per_class_iou(each.counts), strict=True)}
        for name, each in quality.items()
    }
