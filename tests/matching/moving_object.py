"""An ellipsoid that turns before a background that does not, with known correspondences and noisy descriptors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.geometry import cameras, transforms
from sparse_ga.products import Array, PairPrediction, Pointmap, View

AXES = np.array([1.0, 0.7, 0.85])  # of the ellipsoid, object frame


@dataclass(frozen=True, eq=False)
class Scene:
    """Two views of one static camera; the object turned in between. Rays that miss the object see a far wall."""

    view_i: View
    view_j: View
    cam_from_object: Array  # (2, 4, 4)
    surface: Array  # (2, H, W, 3) object-frame points, NaN off the object
    intrinsics: Array  # (3, 3)

    def true_xy_j(self, xy_i: Array) -> tuple[Array, Array]:
        """Where the surface points at integer pixels `xy_i` (M, 2) of view i are in view j, and if they face it."""
        x, y = xy_i.astype(int).T
        points = self.surface[0, y, x]  # (M, 3)
        xy, valid = cameras.project(self.intrinsics, transforms.apply(self.cam_from_object[1], points))
        eye = transforms.inverse(self.cam_from_object[1])[:3, 3]
        facing = ((eye - points) * (points / AXES**2)).sum(1) > 0  # the outward normal sees the camera
        return xy, valid & facing


def _cast(intrinsics: Array, cam_from_object: Array, height: int, width: int) -> Array:
    """Object-frame points (H, W, 3) where pixel rays first meet the ellipsoid; NaN where they miss."""
    object_from_cam = transforms.inverse(cam_from_object)
    rays = cameras.rays(intrinsics, cameras.pixel_grid(height, width).reshape(-1, 2)) @ object_from_cam[:3, :3].T
    origin, direction = object_from_cam[:3, 3] / AXES, rays / AXES
    a, b, c = (direction**2).sum(1), direction @ origin, origin @ origin - 1
    root = b**2 - a * c
    t = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.nan)
    return (object_from_cam[:3, 3] + t[:, None] * rays).reshape(height, width, 3)


def make_scene(height: int = 96, width: int = 128, turn_deg: float = 25.0, distance: float = 4.0) -> Scene:
    """The object fills about a quarter of the images."""
    intrinsics = cameras.make_intrinsics(1.5 * width, np.array([(width - 1) / 2, (height - 1) / 2]))
    turn = np.radians(turn_deg)
    poses = np.stack(
        [
            transforms.make(transforms.exp_so3(np.array([0.2, angle, 0.1])), np.array([0.1, 0.05, distance]))
            for angle in (0.0, turn)
        ]
    )
    surface = np.stack([_cast(intrinsics, pose, height, width) for pose in poses])
    views = [
        View(
            f"view{n}",
            np.zeros((height, width, 3), np.uint8),
            np.isfinite(surface[n, ..., 0]),
            intrinsics,
            np.eye(3),
            (width, height),
            str(n),
            "given",
        )
        for n in range(2)
    ]
    return Scene(views[0], views[1], poses, surface, intrinsics)


def describe(scene: Scene, noise: float, seed: int) -> PairPrediction:
    """Unit descriptors of 24 numbers, random Fourier features of the surface, plus noise of norm `noise` per pixel.

    Their wavelengths go from the object's size down to a few pixels, as those of descriptors trained to tell
    neighbouring pixels apart do. The background's descriptors depend on the pixel alone and carry no noise: it matches
    itself perfectly where it stands still.
    """
    rng = np.random.default_rng(seed)
    pixels_per_unit = scene.intrinsics[0, 0] / scene.cam_from_object[0, 2, 3]
    detail = np.geomspace(4.0, 0.5 * pixels_per_unit, 24)  # radians per unit of the object frame
    waves, phases = rng.normal(size=(3, 24)) * detail, rng.uniform(0, 2 * np.pi, 24)
    grid = cameras.pixel_grid(scene.view_i.height, scene.view_i.width) / scene.view_i.width
    wall = np.concatenate([grid * 4, np.full_like(grid[..., :1], 5)], 2)
    maps = []
    for n in (0, 1, 1, 0):
        points = np.where(np.isfinite(scene.surface[n]), scene.surface[n], wall)
        d = np.cos(points @ waves + phases)
        d /= np.linalg.norm(d, axis=2, keepdims=True)
        d += noise / np.sqrt(24) * rng.normal(size=d.shape) * np.isfinite(scene.surface[n, ..., :1])
        confidence = np.ones(d.shape[:2], np.float32)
        seen = transforms.apply(scene.cam_from_object[n], points.reshape(-1, 3)).reshape(points.shape)
        maps.append(Pointmap(seen.astype(np.float32), confidence, d.astype(np.float32), confidence))
    return PairPrediction(*maps)
