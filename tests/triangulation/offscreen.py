"""Off-screen pictures of clouds and meshes, by numpy and by ray casting: what the exports should look like."""

from __future__ import annotations

import cv2
import numpy as np

from sparse_ga._open3d import open3d
from sparse_ga.products import Array


def render_points(
    points: Array, colors: Array, intrinsics: Array, cam_from_world: Array, size: tuple[int, int], radius: int = 1
) -> tuple[Array, Array]:
    """Picture (H, W, 3) uint8 and coverage (H, W) bool of points drawn as squares, nearest in front."""
    width, height = size
    cam = points.astype(np.float64) @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    front = cam[:, 2] > 1e-9
    cam, colors = cam[front], colors[front]
    xy = cam[:, :2] / cam[:, 2:] * np.diag(intrinsics)[:2] + intrinsics[:2, 2]
    cell = np.rint(xy).astype(int)
    order = np.argsort(-cam[:, 2], kind="stable")
    cell, colors = cell[order], colors[order]
    depth = cam[order, 2]
    nearest = np.full((height, width), np.inf)
    picture = np.zeros((height, width, 3), np.uint8)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            x, y = cell[:, 0] + dx, cell[:, 1] + dy
            inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
            layer = np.full((height, width), np.inf)
            layer[y[inside], x[inside]] = depth[inside]
            paint = np.zeros_like(picture)
            paint[y[inside], x[inside]] = colors[inside]
            closer = layer < nearest
            nearest[closer], picture[closer] = layer[closer], paint[closer]
    return picture, np.isfinite(nearest)


def render_mesh_mask(
    vertices: Array, faces: Array, intrinsics: Array, cam_from_world: Array, size: tuple[int, int]
) -> Array:
    """Silhouette (H, W) bool of a mesh by ray casting."""
    o3d = open3d()
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.uint32))
    width, height = size
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    rays = np.concatenate([(grid - intrinsics[:2, 2]) / np.diag(intrinsics)[:2], np.ones((len(grid), 1))], 1)
    world_from_cam = np.linalg.inv(cam_from_world)
    origin = np.broadcast_to(world_from_cam[:3, 3], rays.shape)
    batch = np.concatenate([origin, rays @ world_from_cam[:3, :3].T], 1).astype(np.float32)
    return np.isfinite(scene.cast_rays(batch)["t_hit"].numpy()).reshape(height, width)


def silhouette_iou(drawn: Array, mask: Array) -> float:
    """Intersection over union of two masks (H, W); pinholes of a drawn cloud up to 3 px are closed first."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    closed = cv2.morphologyEx(drawn.astype(np.uint8), cv2.MORPH_CLOSE, kernel).astype(bool)
    return float((closed & mask).sum() / max((closed | mask).sum(), 1))
