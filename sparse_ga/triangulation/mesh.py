"""A watertight mesh: screened Poisson of the cloud, cut back to the evidence, holes closed, coloured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from sparse_ga._open3d import open3d
from sparse_ga.products import Array, Mesh
from sparse_ga.triangulation.fusion import Cloud, object_diameter
from sparse_ga.triangulation.silhouettes import Hull, carve
from sparse_ga.triangulation.views import Rig

_EVIDENCE = 0.03
_COLOR_NEIGHBOURS = 4
_MIN_POINTS = 50
_MIN_PART = 0.02
_COINCIDENT = 1e-6
_SEPARATED = 0.05


@dataclass(frozen=True, eq=False)
class _Surface:
    vertices: Array  # (V, 3) float64
    faces: Array  # (F, 3) int64


def poisson_mesh(cloud: Cloud, points: Array, colors: Array, depth: int) -> Mesh:
    """Watertight mesh of a cloud, coloured by points (P, 3) of colours (P, 3) uint8; empty when there are too few.

    Screened Poisson (Kazhdan and Hoppe, ToG 2013) invents surface where there is no evidence. What is farther than 3 %
    of the object's diameter from every point of the cloud is cut away, scraps are dropped, and each hole is closed by
    a fan from its middle, the smallest invention that keeps the mesh watertight. One thread: the same cloud gives the
    same mesh. `depth` is that of the octree.
    """
    diameter = object_diameter(cloud.points)
    if len(points) < _MIN_POINTS or diameter <= 0:
        return Mesh.empty()
    surface = _poisson(cloud, depth)
    distance, _ = cKDTree(cloud.points).query(surface.vertices)
    surface = _drop_vertices(surface, distance > _EVIDENCE * diameter)
    surface = _close(_drop_scraps(_cut_crossings(surface)))
    if len(surface.faces) == 0:
        return Mesh.empty()
    surface = _separate(_outwards(surface), _COINCIDENT * diameter)
    return Mesh(
        surface.vertices,
        surface.faces.astype(np.int32),
        vertex_colors(surface.vertices, points, colors),
    )


def with_hull(cloud: Cloud, rig: Rig, masks: list[Array], diameter: float) -> Cloud:
    """The cloud with oriented points of the visual hull's surface added wherever it is far from any point of the cloud.

    They keep the Poisson surface inside the hull where no view gives a depth. `masks` are those of all views, working
    px; cells seen outside any mask are not hull.
    """
    points, normals = _hull_surface(carve(rig, masks, cloud.points))
    if len(points) == 0:
        return cloud
    far = cKDTree(cloud.points).query(points)[0] > _EVIDENCE * diameter
    return Cloud(
        np.concatenate([cloud.points, points[far]]),
        np.concatenate([cloud.normals, normals[far]]),
        np.concatenate([cloud.confidence, np.zeros(int(far.sum()))]),
    )


def _hull_surface(hull: Hull) -> tuple[Array, Array]:
    """Centres (S, 3) of the hull's boundary cells, and outward normals (S, 3) from the smoothed occupancy."""
    from scipy.ndimage import binary_erosion, gaussian_filter

    shell = hull.inside & ~binary_erosion(hull.inside)
    smooth = gaussian_filter(hull.inside.astype(np.float64), 1.5)
    gradient = np.stack(np.gradient(smooth), -1)[shell]  # (S, 3)
    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    sound = length[:, 0] > 1e-9
    return hull.centers(shell)[sound], (-gradient / np.maximum(length, 1e-12))[sound]


def _poisson(cloud: Cloud, depth: int) -> _Surface:
    o3d = open3d()
    pcd = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(cloud.points))
    pcd.normals = o3d.utility.Vector3dVector(cloud.normals)
    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        mesh, _ = o3d.geometry.TriangleMesh.create_from_point_cloud_poisson(pcd, depth=depth, n_threads=1)
    return _Surface(np.asarray(mesh.vertices).copy(), np.asarray(mesh.triangles).astype(np.int64))


def _drop_vertices(surface: _Surface, drop: Array) -> _Surface:
    faces = surface.faces[~drop[surface.faces].any(1)]
    return _compact(_Surface(surface.vertices, faces))


def _compact(surface: _Surface) -> _Surface:
    """Without unused vertices and degenerate faces."""
    f = surface.faces
    f = f[(f[:, 0] != f[:, 1]) & (f[:, 1] != f[:, 2]) & (f[:, 2] != f[:, 0])]
    used, faces = np.unique(f, return_inverse=True)
    return _Surface(surface.vertices[used], faces.reshape(-1, 3).astype(np.int64))


def _cut_crossings(surface: _Surface) -> _Surface:
    """Without the faces on edges where more than two meet, which Poisson surfaces hold here and there."""
    f = surface.faces
    ends = np.sort(np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]]), 1)  # (3 F, 2)
    _, edge, shared = np.unique(
        ends[:, 0] * len(surface.vertices) + ends[:, 1], return_inverse=True, return_counts=True
    )
    crossing = (shared[edge.reshape(-1)] > 2).reshape(3, -1).any(0)  # (F,)
    return _compact(_Surface(surface.vertices, f[~crossing]))


def _drop_scraps(surface: _Surface) -> _Surface:
    """Only the connected parts with at least a fiftieth of the faces of the largest."""
    count = len(surface.vertices)
    if count == 0:
        return surface
    a, b = surface.faces[:, [0, 1]].ravel(), surface.faces[:, [1, 2]].ravel()
    part = connected_components(coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(count, count)), False)[1]
    faces_of_part = np.bincount(part[surface.faces[:, 0]])
    keep = faces_of_part >= _MIN_PART * faces_of_part.max()
    return _compact(_Surface(surface.vertices, surface.faces[keep[part[surface.faces[:, 0]]]]))


def _close(surface: _Surface) -> _Surface:
    """Every boundary loop closed by a fan of triangles around its mean vertex."""
    faces = surface.faces
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])  # (3 F, 2)
    count = len(surface.vertices)
    forward = directed[:, 0] * count + directed[:, 1]
    backward = directed[:, 1] * count + directed[:, 0]
    boundary = directed[~np.isin(forward, backward)]
    vertices, caps = [surface.vertices], [faces]
    for loop in _loops(boundary):
        center = count
        count += 1
        vertices.append(surface.vertices[loop].mean(0, keepdims=True))
        after = np.roll(loop, -1)
        caps.append(np.stack([after, loop, np.full(len(loop), center)], 1))
    return _compact(_Surface(np.concatenate(vertices), np.concatenate(caps)))


def _loops(boundary: Array) -> list[Array]:
    """Closed walks that use every directed edge (E, 2) once; a vertex met twice ends a loop."""
    following: dict[int, list[int]] = {}
    for a, b in boundary.tolist():
        following.setdefault(a, []).append(b)
    loops = []
    for start in sorted(following):
        while following[start]:
            walk, position = [start], {start: 0}
            while following.get(walk[-1]):
                step = following[walk[-1]].pop()
                if step in position:
                    first = position[step]
                    loops.append(np.array(walk[first:]))
                    for vertex in walk[first + 1 :]:
                        del position[vertex]
                    del walk[first + 1 :]
                else:
                    position[step] = len(walk)
                    walk.append(step)
    return [loop for loop in loops if len(loop) >= 3]


def _outwards(surface: _Surface) -> _Surface:
    """With faces turned so that the signed volume is positive."""
    a, b, c = (surface.vertices[surface.faces[:, k]] for k in range(3))
    volume = float((a * np.cross(b, c)).sum())
    return surface if volume >= 0 else _Surface(surface.vertices, surface.faces[:, ::-1])


def _separate(surface: _Surface, cell: float) -> _Surface:
    """With vertices that share a cubic `cell` moved apart, a twentieth of the way to the mean of their neighbours.

    Poisson surfaces hold a few vertices at one place that belong to different sheets. Programs that merge equal
    vertices when they read a file would join the sheets there, and four faces would meet in an edge.
    """
    faces, vertices = surface.faces, surface.vertices.copy()
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])  # (3 F, 2), every edge both ways
    degree = np.maximum(np.bincount(ends[:, 0], minlength=len(vertices)), 1)
    for _ in range(8):
        _, first, group = np.unique(np.rint(vertices / cell), axis=0, return_index=True, return_inverse=True)
        twin = first[group.reshape(-1)] != np.arange(len(vertices))
        if not twin.any():
            break
        total = [np.bincount(ends[:, 0], vertices[ends[:, 1], k], minlength=len(vertices)) for k in range(3)]
        mean = np.stack(total, 1) / degree[:, None]
        vertices[twin] += _SEPARATED * (mean[twin] - vertices[twin])
    return _Surface(vertices, faces)


def vertex_colors(vertices: Array, points: Array, colors: Array) -> Array:
    """Colours (V, 3) uint8 of vertices (V, 3) from the nearest points (P, 3), weighted by inverse distance."""
    neighbours = min(_COLOR_NEIGHBOURS, len(points))
    distance, index = cKDTree(points).query(vertices, k=neighbours)
    distance, index = distance.reshape(len(vertices), -1), index.reshape(len(vertices), -1)
    weight = 1 / (distance + 1e-9 + 0.1 * distance.mean())
    mixed = (colors[index].astype(np.float64) * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
