"""GLB (binary glTF): the mesh or the cloud, with a frustum for every registered camera.

glTF looks down -z with y up, this library down +z with y down. The geometry stays in the world frame; the nodes carry
the half turn about x that a viewer needs. A scene so far from the world's origin that float32, all that glTF has for
geometry, would round it away is relative to its middle instead, and the nodes carry that shift as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import trimesh

from sparse_ga.geometry.placement import display_origin, shifted
from sparse_ga.geometry.transforms import make
from sparse_ga.products import Array, Reconstruction

_GLTF_FROM_WORLD = np.diag([1.0, -1.0, -1.0, 1.0])
_FRUSTUM_COLOR = (240, 120, 20, 255)
_FRUSTUM_SHARE = 0.15


def encode_glb(reconstruction: Reconstruction, surface: bool) -> bytes:
    """A GLB with the mesh (`surface`) or the points, and camera frusta; nodes `mesh` or `points`, and `cameras`."""
    scene, origin = trimesh.Scene(), display_origin(reconstruction)
    near = shifted(reconstruction, -origin)
    gltf_from_near = _GLTF_FROM_WORLD @ make(np.eye(3), origin)
    if surface and len(near.mesh.faces):
        scene.add_geometry(_mesh(near), "mesh", "mesh", transform=gltf_from_near)
    elif len(near.points):
        points = trimesh.PointCloud(near.points.astype(np.float64), colors=_opaque(near.colors))
        scene.add_geometry(points, "points", "points", transform=gltf_from_near)
    segments = frusta(near)
    if len(segments):
        lines = trimesh.load_path(segments)
        lines.colors = np.tile(np.array(_FRUSTUM_COLOR, np.uint8), (len(lines.entities), 1))
        scene.add_geometry(lines, "cameras", "cameras", transform=gltf_from_near)
    if scene.is_empty:
        scene.add_geometry(trimesh.PointCloud(np.zeros((1, 3))), "empty", "empty")
    return bytes(scene.export(file_type="glb"))


def _mesh(reconstruction: Reconstruction) -> Any:
    mesh = reconstruction.mesh
    result = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=_opaque(mesh.colors), process=False)
    return result


def _opaque(colors: Array) -> Array:
    return np.concatenate([colors, np.full((len(colors), 1), 255, np.uint8)], 1)


def frusta(reconstruction: Reconstruction) -> Array:
    """Line segments (S, 2, 3) in the world: a pyramid for each registered camera, and a tick on its upper side."""
    views = np.nonzero(reconstruction.registered)[0]
    if len(views) == 0:
        return np.zeros((0, 2, 3))
    size = _frustum_depth(reconstruction, views)
    segments = []
    for n in views:
        width, height = reconstruction.source_sizes[n]
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height], [width / 2, -0.15 * height]]) - 0.5
        k = reconstruction.intrinsics[n]
        rays = np.concatenate([(corners - k[:2, 2]) / np.diag(k)[:2], np.ones((5, 1))], 1) * size  # (5, 3)
        points = np.concatenate([np.zeros((1, 3)), rays])  # apex, four corners, tick
        world = points @ reconstruction.world_from_cam[n, :3, :3].T + reconstruction.world_from_cam[n, :3, 3]
        edges = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1), (1, 5), (5, 2)]
        segments.append(world[np.array(edges)])
    return np.concatenate(segments)


def _frustum_depth(reconstruction: Reconstruction, views: Array) -> float:
    """Length of the drawn pyramids: a share of the median distance of the cameras to the object."""
    centers = reconstruction.world_from_cam[views, :3, 3]
    points = reconstruction.points if len(reconstruction.points) else reconstruction.track_points
    middle = np.median(points, axis=0) if len(points) else np.zeros(3)
    distance = float(np.median(np.linalg.norm(centers - middle, axis=1)))
    return _FRUSTUM_SHARE * distance if distance > 0 else 1.0
