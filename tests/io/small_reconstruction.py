"""A reconstruction made by hand: a painted ball before exact cameras, one view unregistered."""

from __future__ import annotations

import numpy as np

from sparse_ga.geometry import transforms
from sparse_ga.products import (
    Array,
    DepthMaps,
    MaskStack,
    Mesh,
    Reconstruction,
    ReconstructionReport,
    Tracks,
)

WIDTH, HEIGHT = 120, 90
VIEWS = 7
LOST = 3  # the unregistered view


def make_reconstruction(offset: tuple[float, float] = (4.3, -2.6)) -> Reconstruction:
    """A unit ball at the world's origin seen from a ring; principal point `offset` from the image centre."""
    poses, k = _cameras(offset)
    working_from_source = np.diag([0.5, 0.5, 1.0])
    working_from_source[:2, 2] = -0.25
    points = _spiral(4000)
    depths = [_depth(working_from_source @ k, pose, (HEIGHT // 2, WIDTH // 2)) for pose in poses]
    depths[LOST] = np.zeros_like(depths[LOST])
    track_points = _spiral(150)
    tracks = _tracks(poses, k, track_points)
    seen = np.unique(tracks.point_index)
    tracks = Tracks(np.searchsorted(seen, tracks.point_index), tracks.view_index, tracks.xy)
    registered = np.arange(VIEWS) != LOST
    poses[LOST] = np.eye(4)
    return Reconstruction(
        names=tuple(f"photo {n}.jpg" for n in range(VIEWS)),
        registered=registered,
        reasons=tuple("" if good else "no matches" for good in registered),
        world_from_cam=poses,
        intrinsics=np.tile(k, (VIEWS, 1, 1)),
        source_sizes=np.tile([WIDTH, HEIGHT], (VIEWS, 1)),
        working_from_source=np.tile(working_from_source, (VIEWS, 1, 1)),
        points=points.astype(np.float32),
        colors=paint(points),
        normals=points.astype(np.float32),
        point_confidence=np.linspace(0.1, 1, len(points)).astype(np.float32),
        tracks=tracks,
        track_points=track_points[seen],
        track_colors=paint(track_points[seen]),
        track_errors=np.full(len(seen), 0.1),
        depthmaps=DepthMaps.pack(depths, [(depth > 0).astype(np.float32) for depth in depths]),
        masks=MaskStack.pack([depth > 0 for depth in depths]),
        mesh=_octahedron(),
        report=ReconstructionReport(diameter=2.0),
    )


def paint(points: Array) -> Array:
    return np.clip(128 + 120 * points, 0, 255).astype(np.uint8)


def load_source(n: int) -> tuple[Array, Array]:
    """Photograph and mask of a view: the painted ball before blue."""
    poses, k = _cameras((4.3, -2.6))
    depth = _depth(k, poses[n], (HEIGHT, WIDTH))
    mask = depth > 0
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones_like(x)], -1)
    world = (rays * depth[..., None]) @ poses[n, :3, :3].T + poses[n, :3, 3]
    return np.where(mask[..., None], paint(world), np.array([20, 40, 200])).astype(np.uint8), mask


def _cameras(offset: tuple[float, float]) -> tuple[Array, Array]:
    turn = np.zeros((VIEWS, 3))
    turn[:, 1] = np.linspace(0, 3.5, VIEWS)
    turn[:, 0] = 0.2
    rotation = transforms.exp_so3(turn)
    poses = transforms.make(rotation, -rotation @ np.array([0, 0, 4.0]))
    k = np.array([[130.0, 0, (WIDTH - 1) / 2 + offset[0]], [0, 131.0, (HEIGHT - 1) / 2 + offset[1]], [0, 0, 1]])
    return poses, k


def _spiral(count: int) -> Array:
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = np.arange(count) * 2.399963
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], 1)


def _depth(k: Array, pose: Array, shape: tuple[int, int]) -> Array:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones_like(x)], -1)
    center = -pose[:3, :3].T @ pose[:3, 3]
    a, b, c = (rays**2).sum(-1), rays @ center, center @ center - 1
    inside = b**2 - a * c
    return np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, 0).astype(np.float32)


def _tracks(poses: Array, k: Array, points: Array) -> Tracks:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(VIEWS):
        cam = transforms.apply(transforms.inverse(poses[n]), points)
        facing = (poses[n, :3, 3] * points).sum(1) > 1.2
        xy = cam[:, :2] / cam[:, 2:] * np.diag(k)[:2] + k[:2, 2] + 0.1 * rng.normal(size=(len(points), 2))
        for p in np.nonzero(facing)[0] if n != LOST else []:
            rows.append((p, n, *xy[p]))
    table = np.array(sorted(rows))
    count = np.bincount(table[:, 0].astype(int), minlength=len(points))
    table = table[count[table[:, 0].astype(int)] >= 2]
    return Tracks(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:])


def _octahedron() -> Mesh:
    vertices = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)
    faces = np.array([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]], np.int32)
    return Mesh(vertices, faces, paint(vertices))
