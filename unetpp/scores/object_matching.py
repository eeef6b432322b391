"""Objects found and missed, matched by IoU.

An object is what is numbered as one, or else what hangs together over edges or corners (8 neighbours) of one class.
Two objects match where their IoU is greater than a threshold; from 0.5 on no object then has two partners, so that
there is nothing to assign.

- Object F1: 2 TP / (2 TP + FP + FN) at IoU 0.5.
- The average precision of the Data Science Bowl 2018: the mean of TP / (TP + FP + FN) over the thresholds 0.5, 0.55
  ... 0.95.

An image without objects, true or predicted, scores 1.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

TWENTIETHS = np.arange(10, 20)  # the thresholds, as whole numbers: IoUs are compared without rounding
NEIGHBOURS = np.ones((3, 3), dtype=int)


@dataclass(frozen=True)
class Objects:
    """The objects of a plane."""

    numbers: np.ndarray  # (H, W) int32: 0, or the object's number from 1 on
    areas: np.ndarray  # (n,) px, object 1 first

    @classmethod
    def of(cls, plane: np.ndarray) -> "Objects":
        """The connected components of a plane (H, W) bool."""
        numbers, count = ndimage.label(plane, NEIGHBOURS)  # type: ignore[misc] - the stub knows one of its answers
        return cls(numbers, np.bincount(numbers.ravel(), minlength=count + 1)[1:])

    @classmethod
    def of_numbers(cls, numbers: np.ndarray) -> "Objects":
        """What is numbered already (H, W), from 1 on, where some numbers may be missing."""
        areas = np.bincount(numbers.ravel())
        areas[:1] = 0
        names = np.zeros(len(areas), np.int32)
        names[areas > 0] = np.arange(1, np.count_nonzero(areas) + 1)
        return cls(names[numbers], areas[areas > 0])


def join_pieces(pairs: np.ndarray, count: int) -> np.ndarray:
    """Of each of `count` pieces the object that it is of (count,), from 0 on in the order of their first pieces.

    Args:
        pairs: (n, 2) pieces that are of one object, by their places from 0 on.
    """
    graph = sparse.coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    groups = csgraph.connected_components(graph, directed=False)[1]
    _, first, which = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]


@dataclass(frozen=True)
class Matches:
    """What became of the objects of an image."""

    num_true: int
    num_hat: int
    hits: np.ndarray  # (10,) matched pairs at each threshold
    best_iou: np.ndarray  # (num_true,) IoU of each true object with the prediction that covers it best, 0 for none

    @property
    def f1(self) -> float:
        """Object F1 at IoU 0.5."""
        total = self.num_true + self.num_hat
        return float(2 * self.hits[0] / total) if total else 1.0

    @property
    def average_precision(self) -> float:
        """That of the Data Science Bowl, over the ten thresholds."""
        total = self.num_true + self.num_hat
        return float(np.mean(self.hits / (total - self.hits))) if total else 1.0


@dataclass(frozen=True)
class Pairs:
    """All pairs of a predicted and a true object of an image that share pixels."""

    true_areas: np.ndarray  # (num_true,) px
    hat_areas: np.ndarray  # (num_hat,) px
    true: np.ndarray  # (pairs,) indices of true objects
    hat: np.ndarray  # (pairs,)
    shared: np.ndarray  # (pairs,) px

    def match(self, smallest_px: int = 1) -> Matches:
        """What becomes of the objects, where predicted ones of fewer pixels are none."""
        kept = self.hat_areas >= smallest_px
        true, hat, shared = (each[kept[self.hat]] for each in (self.true, self.hat, self.shared))
        union = self.true_areas[true] + self.hat_areas[hat] - shared
        hits = (20 * shared > TWENTIETHS[:, None] * union).sum(axis=1)
        best = np.zeros(len(self.true_areas))
        np.maximum.at(best, true, shared / union)
        return Matches(len(best), int(kept.sum()), hits, best)


def find_pairs(hat: Objects, true: Objects) -> Pairs:
    """The predicted objects beside the true ones of the same image."""
    both = (hat.numbers > 0) & (true.numbers > 0)
    width = len(hat.areas) + 1
    keys = true.numbers[both].astype(np.int64) * width + hat.numbers[both]
    pairs, shared = np.unique(keys, return_counts=True)
    return Pairs(true.areas, hat.areas, pairs // width - 1, pairs % width - 1, shared)


def match_objects(hat: Objects, true: Objects) -> Matches:
    """Match the predicted objects with the true ones of the same image."""
    return find_pairs(hat, true).match()
