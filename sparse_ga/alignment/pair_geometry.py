"""What one pair says of the relative pose of its views: a similarity between their canonical frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.alignment.robust import robust_similarity
from sparse_ga.geometry.transforms import apply, inverse, make, nearest_rotation
from sparse_ga.products import Array, PairPrediction, Pointmap

_MAX_POINTS = 600


@dataclass(frozen=True)
class PairEdge:
    """One pair of the view graph.

    `i_from_j` takes view j's canonical frame to view i's (its scale is the ratio of their arbitrary depth units).
    `weight` orders edges. Edges that are not `verified` (their matching failed) know the pose from point maps only.
    """

    i: int
    j: int
    i_from_j: Array  # (4, 4) float64 similarity
    weight: float
    verified: bool
    precision: Array  # (7, 7) inverse covariance, see `averaging.edge_residuals`


def _common_points(first: Pointmap, second: Pointmap, mask: Array) -> tuple[Array, Array, Array]:
    """Points of one view's foreground in two frames, (P, 3), (P, 3), and their confidence (P,), thinned evenly."""
    index = np.flatnonzero(mask & (first.confidence > 0) & (second.confidence > 0))
    if len(index) > _MAX_POINTS:
        index = index[np.linspace(0, len(index) - 1, _MAX_POINTS).astype(int)]
    finite = np.isfinite(first.points.reshape(-1, 3)[index]) & np.isfinite(second.points.reshape(-1, 3)[index])
    index = index[finite.all(-1)]
    weight = np.sqrt(first.confidence.reshape(-1)[index] * second.confidence.reshape(-1)[index])
    a, b = first.points.reshape(-1, 3)[index], second.points.reshape(-1, 3)[index]
    return a.astype(float), b.astype(float), weight.astype(float)


def similarity_from_pointmaps(prediction: PairPrediction, mask_i: Array, mask_j: Array) -> tuple[Array, bool]:
    """Similarity (4, 4) from camera j's frame and unit to camera i's by the point maps, and whether it is known.

    Foreground only. Both decoder passes are used, view j's points in i and j, and view i's points in i and j: each
    alone if the other is missing, their mean (rotations on SO(3), scales in the log domain) if both are there.
    """
    estimates, precisions = [], []
    passes = ((prediction.j_in_i, prediction.j_in_j, mask_j), (prediction.i_in_i, prediction.i_in_j, mask_i))
    for in_i, in_j, mask in passes:
        points_i, points_j, weight = _common_points(in_i, in_j, mask)
        if len(weight) < 4:
            continue
        transform, scale, valid = robust_similarity(points_i, points_j, weight)
        if valid:
            size = float(np.median(points_i[:, 2]))
            estimates.append(transform)
            precisions.append(1.0 / (scale / max(size, 1e-12) + 1e-2) ** 2)
    if not estimates:
        return np.eye(4), False
    return mean_similarity(np.stack(estimates), np.array(precisions)), True


def mean_similarity(transforms: Array, weights: Array) -> Array:
    """Weighted mean (4, 4) of nearby similarities (K, 4, 4)."""
    weights = weights / weights.sum()
    scale = np.cbrt(np.linalg.det(transforms[:, :3, :3]))  # (K,)
    rotation = nearest_rotation((weights[:, None, None] * transforms[:, :3, :3] / scale[:, None, None]).sum(0))
    return make(rotation, weights @ transforms[:, :3, 3], np.exp(weights @ np.log(scale)))


def in_canonical_units(i_from_j: Array, log_scale_i: float, log_scale_j: float) -> Array:
    """A similarity between a pair's own units as one between canonical units, where own = exp(log_scale) canonical."""
    units_i = make(np.eye(3), np.zeros(3), np.exp(-log_scale_i))
    units_j = make(np.eye(3), np.zeros(3), np.exp(log_scale_j))
    return units_i @ i_from_j @ units_j


def match_error(i_from_j: Array, points_i: Array, points_j: Array) -> float:
    """Median angle in rad, as seen from either camera, between matched points (M, 3) brought into one frame."""
    if not len(points_i):
        return 0.0
    errors = []
    for a, b in ((points_i, apply(i_from_j, points_j)), (points_j, apply(inverse(i_from_j), points_i))):
        sine = np.linalg.norm(np.cross(a, b), axis=-1)
        errors.append(np.median(np.arctan2(sine, (a * b).sum(-1))))
    return float(max(errors))


def similarity_from_matches(points_i: Array, points_j: Array) -> tuple[Array, bool]:
    """Robust similarity (4, 4) i from j of matched canonical points (M, 3), and whether it is determined."""
    if len(points_i) < 6:
        return np.eye(4), False
    transform, scale, valid = robust_similarity(points_i, points_j, np.ones(len(points_i)), draws=100)
    return transform, valid and scale < 0.1 * float(np.median(points_i[:, 2]))
