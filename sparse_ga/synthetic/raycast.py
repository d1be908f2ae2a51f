"""Ray casting on meshes with open3d, in plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_ga._open3d import open3d
from sparse_ga.products import Array
from sparse_ga.synthetic.shapes import Mesh


def ray_caster(mesh: Mesh) -> Any:
    """A RaycastingScene of one mesh."""
    o3d = open3d()
    caster = o3d.t.geometry.RaycastingScene()
    caster.add_triangles(
        o3d.core.Tensor(mesh.vertices.astype(np.float32)), o3d.core.Tensor(mesh.faces.astype(np.uint32))
    )
    return caster


def cast(caster: Any, frame_from_cam: Array, rays: Array) -> tuple[Array, Array, Array]:
    """First hits along camera-frame rays (P, 3) with z = 1: z-depth (P,), inf for none; triangle (P,); uv (P, 2)."""
    if len(rays) == 0:
        return np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 2))
    directions = rays @ frame_from_cam[:3, :3].T
    origins = np.broadcast_to(frame_from_cam[:3, 3], directions.shape)
    query = np.concatenate([origins, directions], 1).astype(np.float32)  # (P, 6)
    hits = caster.cast_rays(open3d().core.Tensor(query))
    triangle = hits["primitive_ids"].numpy().astype(np.int64)
    return hits["t_hit"].numpy().astype(float), triangle, hits["primitive_uvs"].numpy()


def sample_mesh(mesh: Mesh, number: int, rng: np.random.Generator) -> Array:
    """Points (number, 3) uniform on the surface."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    face = rng.choice(len(area), number, p=area / area.sum())
    u, v = np.sqrt(rng.random((number, 1))), rng.random((number, 1))
    return (1 - u) * a[face] + u * (1 - v) * b[face] + u * v * c[face]
