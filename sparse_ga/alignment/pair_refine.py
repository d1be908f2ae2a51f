"""Relative poses of all pairs sharpened by their matches at once: robust Sampson error with the point maps as prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.geometry.transforms import exp_so3, nearest_rotation
from sparse_ga.products import Array

MATCHES_PER_PAIR = 200
_PIXEL_SIGMA = 1.0
_CHUNK = 256
_INLIER_PX = 3.0


@dataclass(frozen=True)
class PairRays:
    """Matches of many pairs as rays, padded to one length; weight 0 is padding."""

    rays_i: Array  # (P, M, 3), z = 1
    rays_j: Array  # (P, M, 3)
    weight: Array  # (P, M)
    focal_px: Array  # (P,)


def pack_rays(rays_i: list[Array], rays_j: list[Array], focal_px: list[float]) -> PairRays:
    """Rays (M_p, 3) of every pair, thinned evenly to at most `MATCHES_PER_PAIR` and padded."""
    count = len(rays_i)
    length = min(MATCHES_PER_PAIR, max((len(r) for r in rays_i), default=0))
    packed_i, packed_j = (np.tile(np.array([0, 0, 1.0]), (count, length, 1)) for _ in range(2))
    weight = np.zeros((count, length))
    for p, (a, b) in enumerate(zip(rays_i, rays_j)):
        pick = np.arange(len(a)) if len(a) <= length else np.linspace(0, len(a) - 1, length).astype(int)
        packed_i[p, : len(pick)], packed_j[p, : len(pick)] = a[pick], b[pick]
        weight[p, : len(pick)] = 1.0
    return PairRays(packed_i, packed_j, weight, np.array(focal_px))


def _sampson(rotation: Array, translation: Array, rays: PairRays) -> Array:
    """Signed Sampson distances (P, M) px of poses i_from_j, (P, 3, 3) and (P, 3)."""
    return _sampson_with_derivatives(rotation, translation, rays)[0]


def _sampson_with_derivatives(rotation: Array, translation: Array, rays: PairRays) -> tuple[Array, Array, Array]:
    """Signed Sampson distances (P, M) px, their derivatives (P, M, 3) by a left rotation (t fixed) and by t.

    Exact derivatives: with the gradient norm held fixed, a shorter t would seem to lower the distances.
    """
    t, y = translation[:, None], rays.rays_i
    turned = rays.rays_j @ np.swapaxes(rotation, -1, -2)  # (P, M, 3) R x
    line_i = np.cross(t, turned)  # t x R x
    back = np.cross(y, t)  # y x t
    line_j = back @ rotation  # R^T (y x t)
    numerator = (y * line_i).sum(-1)
    flat = np.array([1.0, 1.0, 0.0])
    norm2 = np.maximum(((line_i * flat) ** 2).sum(-1) + ((line_j * flat) ** 2).sum(-1), 1e-18)
    scale = rays.focal_px[:, None] / np.sqrt(norm2)  # (P, M)
    lever_i, lever_j = line_i * flat, (line_j * flat) @ np.swapaxes(rotation, -1, -2)
    by_turn = np.cross(turned, back)  # of the numerator
    by_shift = np.cross(turned, y)
    half_turn = np.cross(turned, np.cross(lever_i, t)) - np.cross(back, lever_j)  # of half the squared norm
    half_shift = np.cross(turned, lever_i) + np.cross(lever_j, y)
    share = (numerator / norm2)[..., None]
    return (
        numerator * scale,
        (by_turn - share * half_turn) * scale[..., None],
        (by_shift - share * half_shift) * scale[..., None],
    )


@dataclass(frozen=True)
class RefinedPairs:
    """Poses that the matches have sharpened, how well they are known, and how many of the matches agree."""

    i_from_j: Array  # (P, 4, 4)
    precision: Array  # (P, 6, 6) inverse covariance of a left rotation about the object's centre and of its shift
    inlier_share: Array  # (P,) of the matches that lie within 3 px of their epipolar line


def refine_pairs(i_from_j: Array, rays: PairRays, sigma: Array, iterations: int = 12) -> RefinedPairs:
    """Similarities (P, 4, 4) nearer to the matches than `i_from_j` (P, 4, 4).

    Maximum a posteriori: Cauchy loss on Sampson distances; prior on the pose with standard deviations `sigma` (P, 2)
    of its rotation about the object, rad, and of the object's position, relative to its distance. The matches say
    nothing of the length of the translation nor of the scale: these stay the prior's.
    """
    parts = []
    for first in range(0, len(i_from_j), _CHUNK):
        part = slice(first, first + _CHUNK)
        chunk = PairRays(rays.rays_i[part], rays.rays_j[part], rays.weight[part], rays.focal_px[part])
        parts.append(_refine_chunk(i_from_j[part], chunk, sigma[part], iterations))
    return RefinedPairs(
        np.concatenate([np.zeros((0, 4, 4)), *(part.i_from_j for part in parts)]),
        np.concatenate([np.zeros((0, 6, 6)), *(part.precision for part in parts)]),
        np.concatenate([np.zeros(0), *(part.inlier_share for part in parts)]),
    )


def _refine_chunk(i_from_j: Array, rays: PairRays, sigma: Array, iterations: int) -> RefinedPairs:
    scale = np.cbrt(np.linalg.det(i_from_j[:, :3, :3]))
    rotation, translation = i_from_j[:, :3, :3] / scale[:, None, None], i_from_j[:, :3, 3]
    centre = np.array([0, 0, 1.0])
    moved = np.zeros((len(scale), 6))  # the pose relative to the prior: rotation about the centre, shift
    precision = np.repeat(sigma**-2.0, 3, 1)  # (P, 6)
    distance = _sampson(rotation, translation, rays)
    loss_px = np.maximum(2.0, 2.0 * _median(np.abs(distance), rays.weight))
    for _ in range(iterations):
        distance, by_turn, by_shift = _sampson_with_derivatives(rotation, translation, rays)
        loss_px = np.maximum(2.0, loss_px / 1.5)
        weight = rays.weight / (1 + (distance / loss_px[:, None]) ** 2) / _PIXEL_SIGMA**2
        about_centre = by_turn + np.cross((translation - centre)[:, None], by_shift)  # t moves by w x (t - c)
        jacobian = np.concatenate([about_centre, by_shift], -1)  # (P, M, 6)
        hessian = np.einsum("pm,pma,pmb->pab", weight, jacobian, jacobian, optimize=True)
        hessian += np.eye(6) * precision[:, None]
        gradient = np.einsum("pm,pma->pa", weight * distance, jacobian) + precision * moved
        step = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
        step *= np.minimum(1.0, 0.3 / np.maximum(np.abs(step).max(1), 1e-12))[:, None]
        turn = exp_so3(step[:, :3])
        rotation = turn @ rotation
        translation = centre + np.einsum("pij,pj->pi", turn, translation - centre) + step[:, 3:]
        moved += step
    distance = np.abs(_sampson(rotation, translation, rays))
    share = ((distance < _INLIER_PX) * rays.weight).sum(1) / np.maximum(rays.weight.sum(1), 1.0)
    result = i_from_j.copy()
    result[:, :3, :3] = nearest_rotation(rotation) * scale[:, None, None]
    result[:, :3, 3] = translation
    return RefinedPairs(result, hessian, share)


def _median(values: Array, weight: Array) -> Array:
    """Median along the last axis of the values with weight, (P,); 0 where there are none."""
    filled = np.where(weight > 0, values, np.inf)
    middle = np.sort(filled, -1)[np.arange(len(values)), np.maximum((weight > 0).sum(-1) - 1, 0) // 2]
    return np.where(np.isfinite(middle), middle, 0.0)
