"""The background of synthetic scenes: a cluttered room, or a sheet of cloth all around."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sparse_ga.geometry import cameras
from sparse_ga.products import Array
from sparse_ga.synthetic.texture import photo_like


@dataclass(frozen=True, eq=False)
class Room:
    """A box with textured sides. The object stands in the middle of the floor, or hovers in the middle of the box."""

    low: Array  # (3,) corner of the box
    high: Array  # (3,)
    walls: Array  # (S, S, 3) float32, tiled over the walls
    floor: Array  # (S, S, 3) float32, tiled over the floor
    texel: float  # side of a texel in room units
    footprint: float | None  # typical radius of what touches the floor and casts a soft shadow; None: nothing does

    @staticmethod
    def build(reach: float, standing: Array | None, focal_px: float, seed: int) -> Room:
        """A room around cameras up to `reach` from the origin.

        The floor is at the lowest of the points (P, 3) `standing` on it, or far below if there are none. A texel is
        about as large as a pixel at the walls.
        """
        half = 1.35 * reach + 1.0
        low, footprint = np.full(3, -half), None
        if standing is not None:
            low[2] = standing[:, 2].min()
            foot = standing[standing[:, 2] < low[2] + 0.06]
            footprint = float(np.median(np.linalg.norm(foot[:, :2], axis=1)))
        walls = photo_like(1024, 1024, seed)
        ground = 0.55 * photo_like(1024, 1024, seed + 1, grain=0.6) + 0.3
        return Room(low, np.full(3, half), walls, ground, 1.3 * reach / focal_px, footprint)

    def render(self, room_from_cam: Array, intrinsics: Array, size: tuple[int, int]) -> tuple[Array, Array]:
        """Colour (H, W, 3) float32 in [0, 1], four samples a pixel, and z-depth (H, W) float32 at pixel centres."""
        width, height = size
        grid = cameras.pixel_grid(height, width).reshape(-1, 2)
        depth, _ = self._hit(room_from_cam, cameras.rays(intrinsics, grid))
        total = np.zeros((height, width, 3), np.float32)
        for shift in np.array([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]]):
            rays = cameras.rays(intrinsics, grid + shift)
            t, side = self._hit(room_from_cam, rays)
            points = (rays * t[:, None]) @ room_from_cam[:3, :3].T + room_from_cam[:3, 3]
            total += self._color(points, side).reshape(height, width, 3)
        return total / 4, depth.reshape(height, width).astype(np.float32)

    def _hit(self, room_from_cam: Array, rays: Array) -> tuple[Array, Array]:
        """Where rays (P, 3) leave the box: z-depth (P,), and the axis of the side they leave through (P,)."""
        direction = rays @ room_from_cam[:3, :3].T
        origin = room_from_cam[:3, 3]
        safe = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
        t = (np.where(safe > 0, self.high, self.low) - origin) / safe  # (P, 3)
        return t.min(1), t.argmin(1)

    def _color(self, points: Array, side: Array) -> Array:
        """Colour (P, 3) of points (P, 3) on the sides of the box."""
        is_floor = (side == 2) & (points[:, 2] < (self.low[2] + self.high[2]) / 2)
        half = self.walls.shape[0] / 2  # keeps the mirrors of the tiling away from the middle of the sides
        u = np.where(side == 0, points[:, 1], points[:, 0]) / self.texel + half + 71.0 * side
        v = np.where(side == 2, points[:, 1], -points[:, 2]) / self.texel + half
        color = _tile(self.walls, u, v)
        ground = _tile(self.floor, u, v)
        return np.where(is_floor[:, None], ground * self._shade(points)[:, None], color).astype(np.float32)

    def _shade(self, points: Array) -> Array:
        """Brightness (P,) of floor points: darkest where the object touches the floor."""
        if self.footprint is None:
            return np.ones(len(points))
        away = np.maximum(np.linalg.norm(points[:, :2], axis=1) - self.footprint, 0)
        return 1 - 0.25 * np.exp(-(away**2) / (2 * 0.06**2)) - 0.3 * np.exp(-(away**2) / (2 * 0.25**2))


def _tile(picture: Array, u: Array, v: Array) -> Array:
    """Bilinear samples (P, 3) of a mirrored tiling of `picture` at texel positions (P,)."""
    size = picture.shape[0]
    mapped = [size - 1 - np.abs(np.mod(w, 2 * size - 2) - (size - 1)) for w in (u, v)]  # (P,) in [0, size - 1]
    rows = 256  # cv2.remap limits each side of its maps
    pad = -len(u) % rows
    x, y = (np.pad(m, (0, pad)).reshape(rows, -1).astype(np.float32) for m in mapped)
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR).reshape(-1, 3)[: len(u)]
