"""How far a predicted outline is from the true one: boundary F1 at a tolerance, and the 95 % Hausdorff distance.

A plane's boundary is its pixels that have one of their four neighbours outside it; beyond the image's edge all is
outside. There is no boundary towards unlabelled pixels, as they are unknown.

- Boundary F1 (Csurka et al. 2013): precision is the share of predicted boundary pixels that have a true one within
  the tolerance, recall the share of true ones that have a predicted one.
- HD95: the larger of the two 95th percentiles of the distances from each boundary to the nearest pixel of the
  other, as in MONAI and DeepMind's surface-distance.

A plane without an outline, which borders only on the image's edge or unlabelled pixels (`has_outline`), cannot be
compared.

If neither plane has a boundary, F1 is 1 and the distance 0. If one has none, F1 is 0 and the distance the image's
diagonal, the maximum: finding nothing must not be better than finding something far away.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree


class BoundaryScore(NamedTuple):
    f1: float
    hd95_px: float


@dataclass(frozen=True)
class Boundary:
    """The boundary pixels of a plane, indexed for nearest-neighbour queries."""

    points: np.ndarray  # (n, 2) rows and columns
    tree: KDTree | None
    diagonal_px: float  # of the image

    @classmethod
    def of(cls, plane: np.ndarray, ignored: np.ndarray | None = None) -> "Boundary":
        """The boundary of a plane (H, W) bool, in which `ignored` (H, W) bool marks unlabelled pixels."""
        points = np.argwhere(find_boundary(plane, ignored))
        return cls(points, KDTree(points) if len(points) else None, float(np.hypot(*plane.shape)))


def has_outline(plane: np.ndarray, ignored: np.ndarray | None = None) -> bool:
    """Whether a plane (H, W) bool borders on at least one known pixel outside it."""
    return bool(find_boundary(plane, ignored, beyond=True).any())


def find_boundary(plane: np.ndarray, ignored: np.ndarray | None = None, beyond: bool = False) -> np.ndarray:
    """(H, W) bool: the pixels of a plane (H, W) bool that have one of their four neighbours outside it.

    Args:
        beyond: pixels beyond the image's edge count as inside.
    """
    known = plane if ignored is None else plane & ~ignored
    inside = np.pad(known if ignored is None else known | ignored, 1, constant_values=beyond)
    surrounded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return known & ~surrounded


def compare_boundaries(hat: Boundary, true: Boundary, tolerance_px: float) -> BoundaryScore:
    """Boundary F1 at `tolerance_px` and HD95 of a predicted boundary against the true one."""
    if hat.tree is None and true.tree is None:
        return BoundaryScore(1.0, 0.0)
    if hat.tree is None or true.tree is None:
        return BoundaryScore(0.0, true.diagonal_px)
    extra, missed = true.tree.query(hat.points)[0], hat.tree.query(true.points)[0]
    precision, recall = np.mean(extra <= tolerance_px), np.mean(missed <= tolerance_px)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return BoundaryScore(float(f1), float(max(np.percentile(extra, 95), np.percentile(missed, 95))))
