"""Exact synthetic scenes: a textured object, ray cast from known cameras, in front of a room.

Frames. *object*: the mesh's, diameter 1, z up; `world_from_cam` of a scene means object_from_cam, because the object is
what a reconstruction is of. *room*: the background's; it coincides with the object's frame at turntable angle zero.
For a rotating object the camera stands still in the room while the object turns; for an orbit the two frames are one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sparse_ga._open3d import open3d
from sparse_ga.geometry import cameras, transforms
from sparse_ga.products import Array, View
from sparse_ga.synthetic.raycast import cast, ray_caster, sample_mesh
from sparse_ga.synthetic.render import Renderer
from sparse_ga.synthetic.rig import Cameras, place_cameras
from sparse_ga.synthetic.scene_config import SceneConfig
from sparse_ga.synthetic.shapes import Mesh, make_shape
from sparse_ga.synthetic.texture import make_texture

__all__ = ["Cameras", "SceneConfig", "SyntheticScene", "make_scene", "without_background"]


@dataclass(frozen=True, eq=False)
class SyntheticScene:
    """Photographs of an object with exact cameras, depths and masks. One unit of length is the object's diameter.

    Depth is along the camera's z axis, exact at pixel centres, 0 off the object; `background_depth` is defined at every
    pixel, also behind the object, and 0 where the background is one colour.
    """

    config: SceneConfig
    names: tuple[str, ...]
    images: tuple[Array, ...]  # (H, W, 3) uint8
    masks: tuple[Array, ...]  # (H, W) bool
    depth: tuple[Array, ...]  # (H, W) float32
    background_depth: tuple[Array, ...]  # (H, W) float32
    cameras: Cameras
    mesh: Mesh

    def __len__(self) -> int:
        return len(self.names)

    @property
    def world_from_cam(self) -> Array:
        """Camera poses (N, 4, 4) in the object's frame."""
        return self.cameras.world_from_cam

    @property
    def room_from_cam(self) -> Array:
        """Camera poses (N, 4, 4) in the background's frame: the motion that the background shows."""
        return self.cameras.room_from_cam

    @property
    def intrinsics(self) -> Array:
        """Intrinsics (N, 3, 3) in pixels of the rendered images."""
        return self.cameras.intrinsics

    @property
    def diameter(self) -> float:
        """Diameter of the object: 1 up to rounding."""
        return self.mesh.diameter

    @cached_property
    def _caster(self) -> Any:
        return ray_caster(self.mesh)

    @cached_property
    def digest(self) -> str:
        """Hash of everything a predictor could be told about the scene."""
        state = hashlib.sha256(repr(self.config).encode())
        for array in (*self.images, *self.masks, self.world_from_cam, self.intrinsics):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()

    def views(self, known_intrinsics: bool = False, known_poses: bool = False) -> list[View]:
        """The photographs as working views: no resizing, cameras unknown unless asked for."""
        return [self._view(n, known_intrinsics, known_poses) for n in range(len(self))]

    def _view(self, n: int, known_intrinsics: bool, known_poses: bool) -> View:
        image, mask = self.images[n], self.masks[n]
        intrinsics = self.intrinsics[n] if known_intrinsics else None
        state = hashlib.sha256(np.array(image.shape).tobytes() + image.tobytes() + mask.tobytes())
        if intrinsics is not None:
            state.update(intrinsics.tobytes())
        return View(
            name=self.names[n],
            image=image,
            mask=mask,
            intrinsics=intrinsics,
            working_from_source=np.eye(3),
            source_size=self.cameras.sizes[n],
            digest=state.hexdigest(),
            intrinsics_source="given" if known_intrinsics else "unknown",
            world_from_cam=self.world_from_cam[n] if known_poses else None,
        )

    def write(self, folder: Path) -> None:
        """Write images/NAME.png, masks/NAME.png (white on the object) and gt.json (name -> K, cam2w, size).

        Views of an earlier scene in the same folder are removed.
        """
        folder = Path(folder)
        for sub in ("images", "masks"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            for path in (folder / sub).glob("view_[0-9][0-9][0-9].png"):
                path.unlink()
        truth = {}
        for n, name in enumerate(self.names):
            Image.fromarray(self.images[n]).save(folder / "images" / name, compress_level=1)
            Image.fromarray(self.masks[n].astype(np.uint8) * 255).save(folder / "masks" / name, compress_level=1)
            truth[name] = {
                "K": self.intrinsics[n].tolist(),
                "cam2w": self.world_from_cam[n].tolist(),
                "size": list(self.cameras.sizes[n]),
            }
        (folder / "gt.json").write_text(json.dumps(truth), encoding="utf-8")

    def surface_distance(self, points: Array) -> Array:
        """Unsigned distance (P,) of object-frame points (P, 3) to the true surface, in diameters."""
        return self._distance(self._caster.compute_distance, points)

    def signed_distance(self, points: Array) -> Array:
        """As `surface_distance`, negative inside the object."""
        return self._distance(self._caster.compute_signed_distance, points)

    def _distance(self, compute: Any, points: Array) -> Array:
        if len(points) == 0:
            return np.zeros(0)
        query = open3d().core.Tensor(np.ascontiguousarray(points, np.float32))
        return compute(query).numpy().astype(float) / self.diameter

    def surface_samples(self, number: int, seed: int = 0) -> Array:
        """Points (number, 3) spread evenly over the surface that at least one camera sees."""
        rng = np.random.default_rng([seed, 3])
        kept: list[Array] = []
        while sum(map(len, kept)) < number:
            points = sample_mesh(self.mesh, max(4 * number, 1000), rng)
            kept.append(points[self.visible(points).any(0)])
        return np.concatenate(kept)[:number]

    def visible(self, points: Array, tolerance: float = 2e-3) -> Array:
        """Whether each camera sees each object-frame point (P, 3): (N, P) bool, by ray casting."""
        result = np.zeros((len(self), len(points)), bool)
        for n in range(len(self)):
            in_cam = transforms.apply(transforms.inverse(self.world_from_cam[n]), points)  # (P, 3)
            xy, front = cameras.project(self.intrinsics[n], in_cam)
            width, height = self.cameras.sizes[n]
            inside = front & (xy >= -0.5).all(-1) & (xy[:, 0] < width - 0.5) & (xy[:, 1] < height - 0.5)
            hit, _, _ = cast(self._caster, self.world_from_cam[n], in_cam[inside] / in_cam[inside][:, 2:])
            result[n, inside] = hit > in_cam[inside][:, 2] - tolerance
        return result

    def depth_at(self, n: int, xy: Array) -> Array:
        """Exact z-depth (P,) of the object along the rays of view n through rendered pixels (P, 2); 0 off it."""
        depth, _, _ = cast(self._caster, self.world_from_cam[n], cameras.rays(self.intrinsics[n], xy))
        return np.where(np.isfinite(depth), depth, 0.0)


def make_scene(config: SceneConfig) -> SyntheticScene:
    """Render the scene that `config` describes; the same config gives the same bytes."""
    mesh = make_shape(config.shape, config.seed, config.mesh_resolution)
    rig = place_cameras(config, mesh)
    texture = make_texture(config.seed, 1.0 if config.texture == "rich" else 0.12)
    renderer = Renderer(config, mesh, texture, rig)
    names = tuple(f"view_{n:03d}.png" for n in range(config.views))
    shots = [renderer.shoot(n) for n in range(config.views)]
    return SyntheticScene(
        config=config,
        names=names,
        images=tuple(shot.image for shot in shots),
        masks=tuple(shot.depth > 0 for shot in shots),
        depth=tuple(shot.depth for shot in shots),
        background_depth=tuple(shot.background_depth for shot in shots),
        cameras=rig,
        mesh=mesh,
    )


def without_background(scene: SyntheticScene, value: int = 0) -> SyntheticScene:
    """The same scene with every pixel off the object set to `value`."""
    images = tuple(np.where(m[..., None], i, np.uint8(value)) for i, m in zip(scene.images, scene.masks, strict=True))
    return replace(scene, images=images)
