"""Pictures and exact depth of synthetic scenes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sparse_ga.geometry import cameras, transforms
from sparse_ga.products import Array
from sparse_ga.synthetic.raycast import cast, ray_caster
from sparse_ga.synthetic.rig import Cameras
from sparse_ga.synthetic.room import Room
from sparse_ga.synthetic.scene_config import SceneConfig
from sparse_ga.synthetic.shapes import Mesh
from sparse_ga.synthetic.texture import SolidTexture

_PLAIN = {"none": 0.5, "black": 0.0, "white": 1.0}


@dataclass(frozen=True, eq=False)
class Shot:
    image: Array  # (H, W, 3) uint8
    depth: Array  # (H, W) float32
    background_depth: Array  # (H, W) float32


class Renderer:
    """Renders views of one scene; keeps the last background, which does not change while the camera stands still."""

    def __init__(self, config: SceneConfig, mesh: Mesh, texture: SolidTexture, rig: Cameras) -> None:
        self._config, self._mesh, self._texture, self._rig = config, mesh, texture, rig
        self._caster = ray_caster(mesh)
        self._room: Room | None = None
        if config.background == "texture":
            reach = float(np.linalg.norm(rig.room_from_cam[:, :3, 3], axis=1).max())
            standing = mesh.vertices if config.motion != "free" else None
            self._room = Room.build(reach, standing, rig.intrinsics[0, 0, 0], config.seed)
        self._backgrounds: dict[bytes, tuple[Array, Array]] = {}

    def shoot(self, n: int) -> Shot:
        """Render view n."""
        width, height = self._rig.sizes[n]
        depth = self._object_depth(n)
        background, background_depth = self._background(n)
        image = background.copy()  # (H, W, 3)
        x0, y0, x1, y1 = self._box(n)
        patch, cover = self._object_color(n, (x0, y0, x1, y1))
        region = image[y0:y1, x0:x1]
        image[y0:y1, x0:x1] = region * (1 - cover) + patch
        rng = np.random.default_rng([self._config.seed, 2, n])
        noisy = image * 255 + rng.normal(size=(height, width, 3)).astype(np.float32) * self._config.noise_levels
        if self._room is None:
            noisy = np.where(
                cv2.dilate((depth > 0).astype(np.uint8), np.ones((3, 3), np.uint8))[..., None] > 0, noisy, image * 255
            )
        return Shot(np.clip(np.round(noisy), 0, 255).astype(np.uint8), depth, background_depth)

    def _box(self, n: int) -> tuple[int, int, int, int]:
        """Pixel box x0, y0, x1, y1 that holds the object in view n."""
        in_cam = transforms.apply(transforms.inverse(self._rig.world_from_cam[n]), self._mesh.vertices)
        xy, _ = cameras.project(self._rig.intrinsics[n], in_cam)
        size = np.array(self._rig.sizes[n])
        low = np.clip(np.floor(xy.min(0)) - 1, 0, size - 1).astype(int)
        high = np.clip(np.ceil(xy.max(0)) + 2, low + 1, size).astype(int)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    def _object_depth(self, n: int) -> Array:
        width, height = self._rig.sizes[n]
        x0, y0, x1, y1 = self._box(n)
        grid = cameras.pixel_grid(height, width)[y0:y1, x0:x1]
        rays = cameras.rays(self._rig.intrinsics[n], grid.reshape(-1, 2))
        hit, _, _ = cast(self._caster, self._rig.world_from_cam[n], rays)
        depth = np.zeros((height, width), np.float32)
        depth[y0:y1, x0:x1] = np.where(np.isfinite(hit), hit, 0).reshape(grid.shape[:2])
        return depth

    def _object_color(self, n: int, box: tuple[int, int, int, int]) -> tuple[Array, Array]:
        """Premultiplied colour (h, w, 3) and coverage (h, w, 1) of the object in a box, four samples a pixel."""
        x0, y0, x1, y1 = box
        fine = cameras.pixel_grid(2 * (y1 - y0), 2 * (x1 - x0)) / 2 - 0.25 + (x0, y0)  # (2h, 2w, 2)
        rays = cameras.rays(self._rig.intrinsics[n], fine.reshape(-1, 2))  # (P, 3)
        pose = self._rig.world_from_cam[n]
        depth, triangle, uv = cast(self._caster, pose, rays)
        hit = np.isfinite(depth)
        points = transforms.apply(pose, rays[hit] * depth[hit, None])
        corner = self._mesh.normals[self._mesh.faces[triangle[hit]]]  # (P, 3, 3)
        u, v = uv[hit, :1], uv[hit, 1:]
        normal = corner[:, 0] * (1 - u - v) + corner[:, 1] * u + corner[:, 2] * v
        color = np.zeros((len(rays), 3), np.float32)
        color[hit] = self._texture.color(points) * self._shade(n, normal)[:, None]
        cover = hit.astype(np.float32).reshape(y1 - y0, 2, x1 - x0, 2, 1).mean((1, 3))
        return color.reshape(y1 - y0, 2, x1 - x0, 2, 3).mean((1, 3)), cover

    def _shade(self, n: int, normal: Array) -> Array:
        """Mild Lambert shading (P,) under a lamp that is fixed in the room."""
        room_from_world = self._rig.room_from_cam[n] @ transforms.inverse(self._rig.world_from_cam[n])
        normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        lamp = np.array([0.75, -0.35, 0.9]) / np.linalg.norm([0.75, -0.35, 0.9])
        cosine = normal @ (room_from_world[:3, :3].T @ lamp)
        return (0.72 + 0.33 * np.clip(cosine, -0.3, 1)).astype(np.float32)

    def _background(self, n: int) -> tuple[Array, Array]:
        """Colour (H, W, 3) in [0, 1] and z-depth (H, W) of the background of view n."""
        width, height = self._rig.sizes[n]
        if self._room is None:
            plain = np.full((height, width, 3), _PLAIN[self._config.background], np.float32)
            return plain, np.zeros((height, width), np.float32)
        pose, intrinsics = self._rig.room_from_cam[n], self._rig.intrinsics[n]
        key = pose.tobytes() + intrinsics.tobytes()
        if key not in self._backgrounds:
            if len(self._backgrounds) > 8:
                self._backgrounds.clear()
            self._backgrounds[key] = self._room.render(pose, intrinsics, (width, height))
        return self._backgrounds[key]
