"""Weighted medians, robust scales and robust closed-form similarities."""

from __future__ import annotations

import numpy as np

from sparse_ga.geometry.transforms import apply, similarity_from_points
from sparse_ga.products import Array


def weighted_median(values: Array, weights: Array) -> Array:
    """Lower weighted median along the last axis, (..., P) -> (...); 0 where all weights are 0."""
    order = np.argsort(values, -1)
    cumulative = np.cumsum(np.take_along_axis(weights, order, -1), -1, dtype=float)
    total = cumulative[..., -1:]
    index = (cumulative < 0.5 * total).sum(-1, keepdims=True)
    index = np.minimum(index, values.shape[-1] - 1)
    median = np.take_along_axis(np.take_along_axis(values, order, -1), index, -1)[..., 0]
    return np.where(total[..., 0] > 0, median, 0.0)


def robust_scale(values: Array) -> float:
    """Standard deviation of a normal distribution with the same median absolute value; 0 for no values."""
    return float(1.4826 * np.median(np.abs(values))) if len(values) else 0.0


def cauchy_weight(distance: Array, scale: float) -> Array:
    """Weight 1 / (1 + (d / scale)^2) of Cauchy's loss."""
    return 1.0 / (1.0 + (distance / max(scale, 1e-12)) ** 2)


def _minimal_similarities(points_a: Array, points_b: Array, draws: int, seed: int) -> Array:
    """Similarities a_from_b (D, 4, 4) of random triples; degenerate ones are left out."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(draws):
        pick = rng.choice(len(points_a), 3, replace=False)
        transform, valid = similarity_from_points(points_a[pick], points_b[pick])
        if valid:
            result.append(transform)
    return np.array(result).reshape(-1, 4, 4)


def robust_similarity(
    points_a: Array, points_b: Array, weights: Array, draws: int = 0, seed: int = 0
) -> tuple[Array, float, bool]:
    """Robust similarity a_from_b (4, 4) of point sets (P, 3), its robust residual scale, and whether it is determined.

    Iteratively reweighted closed form (Umeyama) with Cauchy weights at the median residual. With `draws` > 0 it starts
    from the best of that many minimal samples, which stands up to half of the correspondences being wrong.
    """
    transform, valid = similarity_from_points(points_a, points_b, weights)
    if draws and len(points_a) >= 4:
        candidates = _minimal_similarities(points_a, points_b, draws, seed)
        if len(candidates):
            distance = np.linalg.norm(apply(candidates, points_b[None]) - points_a, axis=-1)  # (D, P)
            median = np.median(distance, -1)
            transform, valid = candidates[np.argmin(median)], True
    if not valid:
        return transform, np.inf, False
    scale = np.inf
    for _ in range(8):
        distance = np.linalg.norm(apply(transform, points_b) - points_a, axis=-1)
        scale = robust_scale(distance)
        update, valid = similarity_from_points(points_a, points_b, weights * cauchy_weight(distance, scale))
        if not valid:
            return transform, scale, False
        change = np.abs(update - transform).max()
        transform = update
        if change < 1e-9:
            break
    return transform, scale, True
