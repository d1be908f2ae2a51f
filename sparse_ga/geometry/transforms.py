"""Rigid and similarity transforms as 4x4 matrices, ``a_from_b``; rotation maps; robust closed-form alignment."""

from __future__ import annotations

import numpy as np

from sparse_ga.products import Array


def apply(a_from_b: Array, points_b: Array) -> Array:
    """Points in frame a: `a_from_b` (..., 4, 4) applied to `points_b` (..., P, 3)."""
    return points_b @ np.swapaxes(a_from_b[..., :3, :3], -1, -2) + a_from_b[..., None, :3, 3]


def inverse(a_from_b: Array) -> Array:
    """b_from_a of rigid or similarity transforms, (..., 4, 4)."""
    linear = a_from_b[..., :3, :3]
    scale2 = (linear**2).sum((-1, -2), keepdims=True) / 3
    back = np.swapaxes(linear, -1, -2) / scale2  # (..., 3, 3)
    result = np.zeros_like(a_from_b)
    result[..., :3, :3] = back
    result[..., :3, 3] = -(back @ a_from_b[..., :3, 3:])[..., 0]
    result[..., 3, 3] = 1
    return result


def make(rotation: Array, translation: Array, scale: Array | float = 1.0) -> Array:
    """Transform (..., 4, 4) from rotation (..., 3, 3), translation (..., 3) and scale (...)."""
    rotation, translation = np.asarray(rotation, float), np.asarray(translation, float)
    result = np.zeros((*rotation.shape[:-2], 4, 4))
    result[..., :3, :3] = rotation * np.asarray(scale, float)[..., None, None]
    result[..., :3, 3] = translation
    result[..., 3, 3] = 1
    return result


def skew(v: Array) -> Array:
    """Cross-product matrix (..., 3, 3) of vectors (..., 3)."""
    result = np.zeros((*v.shape[:-1], 3, 3), v.dtype)
    result[..., 0, 1], result[..., 0, 2], result[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    result[..., 1, 0], result[..., 2, 0], result[..., 2, 1] = v[..., 2], -v[..., 1], v[..., 0]
    return result


def exp_so3(rotvec: Array) -> Array:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3), radians (Rodrigues' formula)."""
    angle2 = (rotvec**2).sum(-1)[..., None, None]
    angle = np.sqrt(angle2)
    small = angle < 1e-6
    safe = np.where(small, 1.0, angle)
    a = np.where(small, 1 - angle2 / 6, np.sin(safe) / safe)
    b = np.where(small, 0.5 - angle2 / 24, (1 - np.cos(safe)) / safe**2)
    k = skew(rotvec)
    return np.eye(3) + a * k + b * (k @ k)


def rotation_angle_deg(a_from_b: Array) -> Array:
    """Angle in degrees, (...), of rotations (..., 3, 3); accurate for small and for large angles."""
    sine = np.stack(
        [
            a_from_b[..., 2, 1] - a_from_b[..., 1, 2],
            a_from_b[..., 0, 2] - a_from_b[..., 2, 0],
            a_from_b[..., 1, 0] - a_from_b[..., 0, 1],
        ],
        -1,
    )
    cosine = np.trace(a_from_b, axis1=-2, axis2=-1) - 1
    return np.degrees(np.arctan2(np.linalg.norm(sine, axis=-1), cosine))


def nearest_rotation(matrix: Array) -> Array:
    """The rotation (..., 3, 3) nearest to `matrix` in the Frobenius norm."""
    u, _, vt = np.linalg.svd(matrix)
    sign = np.sign(np.linalg.det(u @ vt))
    u = u.copy()
    u[..., :, 2] *= sign[..., None]
    return u @ vt


def similarity_from_points(points_a: Array, points_b: Array, weights: Array | None = None) -> tuple[Array, bool]:
    """Least-squares similarity a_from_b (4, 4) of two point sets (P, 3), and whether it is determined.

    Closed form of Umeyama (PAMI 1991, eqs. 34-43). Invalid when fewer than three points carry weight, or when they
    lie on one line.
    """
    w = np.ones(len(points_a)) if weights is None else np.asarray(weights, float)
    if (w > 0).sum() < 3:
        return np.eye(4), False
    w = w / w.sum()
    mean_a, mean_b = w @ points_a, w @ points_b
    a, b = points_a - mean_a, points_b - mean_b  # (P, 3)
    covariance = (a * w[:, None]).T @ b  # (3, 3)
    u, s, vt = np.linalg.svd(covariance)
    variance_b = float((w[:, None] * b**2).sum())
    if variance_b <= 0 or s[1] <= 1e-9 * max(s[0], 1e-300):
        return np.eye(4), False
    d = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * d) @ vt
    scale = float((s * d).sum() / variance_b)
    if not np.isfinite(scale) or scale <= 0:
        return np.eye(4), False
    return make(rotation, mean_a - scale * rotation @ mean_b, scale), True
