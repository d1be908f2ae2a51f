"""Pinhole cameras in OpenCV axes: projection and unprojection."""

from __future__ import annotations

import numpy as np

from sparse_ga.products import Array


def make_intrinsics(focal_px: float, principal_point: Array) -> Array:
    """Intrinsics (3, 3) of square pixels."""
    return np.array([[focal_px, 0, principal_point[0]], [0, focal_px, principal_point[1]], [0, 0, 1.0]])


def project(intrinsics: Array, points: Array) -> tuple[Array, Array]:
    """Pixels (..., P, 2) of camera-frame points (..., P, 3), and whether they lie in front of the camera (..., P)."""
    z = points[..., 2:]
    valid = z[..., 0] > 1e-9
    normal = points[..., :2] / np.where(valid[..., None], z, 1.0)
    focal = np.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1)[..., None, :]
    return normal * focal + intrinsics[..., None, :2, 2], valid


def rays(intrinsics: Array, xy: Array) -> Array:
    """Camera-frame rays (..., P, 3) with z = 1 through pixels `xy` (..., P, 2)."""
    focal = np.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1)[..., None, :]
    normal = (xy - intrinsics[..., None, :2, 2]) / focal
    return np.concatenate([normal, np.ones_like(normal[..., :1])], -1)


def pixel_grid(height: int, width: int) -> Array:
    """Pixel centres (H, W, 2) float64, (x, y)."""
    x, y = np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float))
    return np.stack([x, y], -1)


def unproject_depth(intrinsics: Array, depth: Array) -> Array:
    """Camera-frame points (H, W, 3) of a z-depth map (H, W)."""
    grid = pixel_grid(*depth.shape)
    return rays(intrinsics, grid.reshape(-1, 2)).reshape(*depth.shape, 3) * depth[..., None]
