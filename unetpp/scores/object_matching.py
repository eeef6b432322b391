"""Objects found and missed: connected components of predicted and true masks, matched by IoU.

An object is what hangs together over edges or corners (8 neighbours) of one class. Two objects match where their
IoU is greater than a threshold; from 0.5 on no object then has two partners, so that there is nothing to assign.

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


def match_objects(hat: Objects, true: Objects) -> Matches:
    """Match the predicted objects with the true ones of the same image."""
    both = (hat.numbers > 0) & (true.numbers > 0)
    width = len(hat.areas) + 1
    keys = true.numbers[both].astype(np.int64) * width + hat.numbers[both]
    pairs, shared = np.unique(keys, return_counts=True)  # (pairs,) px that two objects share
    which, partner = pairs // width - 1, pairs % width - 1
    union = true.areas[which] + hat.areas[partner] - shared
    hits = (20 * shared > TWENTIETHS[:, None] * union).sum(axis=1)
    best = np.zeros(len(true.areas))
    np.maximum.at(best, which, shared / union)
    return Matches(len(true.areas), len(hat.areas), hits, best)
