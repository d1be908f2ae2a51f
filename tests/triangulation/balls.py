"""Depth maps of a bumpy ball, in closed form: many views at no cost."""

from __future__ import annotations

import numpy as np

from sparse_ga.geometry.cameras import make_intrinsics
from sparse_ga.products import Array
from sparse_ga.triangulation.depth import DepthView
from sparse_ga.triangulation.views import Rig

RADIUS = 1.0


def look_at(center: Array) -> Array:
    """Pose (4, 4) of a camera at `center` that looks at the origin, image up along z as far as possible."""
    forward = -center / np.linalg.norm(center)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = center
    return pose


def ball_views(
    count: int, size: tuple[int, int] = (512, 384), share: float = 0.25, noise: float = 0.0
) -> tuple[Rig, list[DepthView]]:
    """Cameras on two rings around a ball that fills `share` of each image, with its depth maps.

    `noise` is the standard deviation of a smooth relative depth error, another one in each view.
    """
    width, height = size
    radius_px = np.sqrt(share * width * height / np.pi)
    focal = 1.25 * width
    distance = RADIUS * np.sqrt((focal / radius_px) ** 2 + 1)
    azimuth = 2 * np.pi * np.arange(count) / count
    elevation = np.radians(np.where(np.arange(count) % 2, 25.0, -15.0))
    direction = np.stack(
        [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)], 1
    )
    poses = np.stack([look_at(distance * d) for d in direction])
    k = make_intrinsics(focal, np.array([(width - 1) / 2, (height - 1) / 2]))
    rng = np.random.default_rng(0)
    views = [_ball_view(n, k, pose, (height, width), noise * rng.normal(size=3)) for n, pose in enumerate(poses)]
    held = np.zeros(count, bool)
    rig = Rig(
        np.ones(count, bool),
        poses,
        np.tile(k, (count, 1, 1)),
        held,
        held,
        np.zeros(count, np.int64),
        np.ones(count),
        np.zeros(count),
    )
    return rig, views


def _ball_view(n: int, k: Array, pose: Array, shape: tuple[int, int], wave: Array) -> DepthView:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones_like(x)], -1)
    center = -pose[:3, :3].T @ pose[:3, 3]  # of the ball, camera frame
    a, b, c = (rays**2).sum(-1), rays @ center, center @ center - RADIUS**2
    inside = b**2 - a * c
    depth = np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, 0)
    error = 1 + wave[0] * np.sin(x / 60 + wave[1] * 9) * np.cos(y / 50 + wave[2] * 9)
    mask = depth > 0
    return DepthView(n, (depth * error).astype(np.float32), mask.astype(np.float32), mask, k, pose)


def painted(view: DepthView, contrast: float = 1.0) -> Array:
    """Photograph (H, W, 3) uint8 of a ball with waves of several lengths on it, before a grey background."""
    rng = np.random.default_rng(0)
    points = view.world_points()
    value = np.zeros(len(points))
    for frequency in (7.0, 13.0, 21.0):
        for _ in range(4):
            direction = rng.normal(size=3)
            value += np.sin(frequency * points @ (direction / np.linalg.norm(direction)) + rng.uniform(0, 6))
    image = np.full((*view.mask.shape, 3), 90.0)
    image[view.valid] = (128 + 22 * contrast * value)[:, None]
    return image.clip(0, 255).astype(np.uint8)
