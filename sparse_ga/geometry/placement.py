"""Where a world's origin is: reconstructions and poses moved so that it is near the object, and back.

Given poses may be in a map's coordinates, millions of units from the origin. Open3D's and glTF's float32, and sums of
squares in float64, leave nothing of an object's shape there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparse_ga.products import Alignment, Array, Reconstruction

_FAR = 100.0  # scene sizes from the origin: float32 rounds to less than 1e-5 of the size up to there


def shifted_poses(cameras: Alignment | Reconstruction, shift: Array) -> Array:
    """World-from-cam (N, 4, 4) with the centres of registered views moved by `shift` (3,), world units."""
    poses = cameras.world_from_cam.copy()
    poses[cameras.registered, :3, 3] += shift
    return poses


def shifted(reconstruction: Reconstruction, shift: Array) -> Reconstruction:
    """The reconstruction with everything in the world moved by `shift` (3,), world units; itself where that is 0."""
    r = reconstruction
    if not shift.any():
        return r
    return replace(
        r,
        world_from_cam=shifted_poses(r, shift),
        points=r.points + shift,
        track_points=r.track_points + shift,
        mesh=replace(r.mesh, vertices=r.mesh.vertices + shift),
    )


def display_origin(reconstruction: Reconstruction) -> Array:
    """The point (3,) to subtract from a scene before it becomes float32: its middle where it is far off, else 0."""
    r = reconstruction
    scene = np.concatenate([r.points, r.track_points, r.mesh.vertices, r.world_from_cam[r.registered, :3, 3]])
    if not len(scene):
        return np.zeros(3)
    low, high = scene.min(0), scene.max(0)
    return (low + high) / 2 if np.abs(scene).max() > _FAR * (high - low).max() else np.zeros(3)
