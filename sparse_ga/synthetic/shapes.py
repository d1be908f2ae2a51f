"""Procedural closed surfaces: implicit functions turned into watertight triangle meshes by surface nets.

Every shape is one implicit function, so unions and hollows are true ones: a mesh has no inner faces, its volume means
something, and each of its points can be seen from outside or from within a hollow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from sparse_ga.products import Array, check, check_finite

Implicit = Callable[[Array], Array]
"""Maps points (P, 3) to values (P,), negative inside; roughly a distance near the surface."""

_EXTENT = 0.62  # half side of the cube in which the implicit functions live
_CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])  # (8, 3)


@dataclass(frozen=True, eq=False)
class Mesh:
    """A closed triangle mesh, faces counter-clockwise seen from outside."""

    vertices: Array  # (V, 3) float64
    faces: Array  # (F, 3) int32
    normals: Array  # (V, 3) float64, unit, outward

    def __post_init__(self) -> None:
        check(self.vertices, "Mesh.vertices", (None, 3), "f")
        check(self.faces, "Mesh.faces", (None, 3), "i")
        check(self.normals, "Mesh.normals", self.vertices.shape, "f")
        check_finite(self.vertices, "Mesh.vertices")
        check_finite(self.normals, "Mesh.normals")

    @property
    def volume(self) -> float:
        """Enclosed volume, by the divergence theorem."""
        a, b, c = (self.vertices[self.faces[:, k]] for k in range(3))
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    @property
    def diameter(self) -> float:
        """Largest distance between two vertices."""
        hull = self.vertices[ConvexHull(self.vertices).vertices]
        radius = np.linalg.norm(hull - (hull.min(0) + hull.max(0)) / 2, axis=1)
        start = hull[radius.argmax()]
        at_least = np.linalg.norm(hull - start, axis=1).max()
        return float(pdist(hull[radius >= at_least - radius.max() - 1e-9]).max())  # nearer the centre: no end of it


def shape_names() -> tuple[str, ...]:
    """Names of all shapes that `make_shape` knows."""
    return tuple(_SHAPES)


def make_shape(name: str, seed: int, resolution: int = 104) -> Mesh:
    """The mesh of a named shape, varied by `seed`: diameter 1, box centred at the origin, z up.

    `resolution` is the number of grid points along each side. Raises `ValueError` for an unknown name.
    """
    if name not in _SHAPES:
        raise ValueError(f"unknown shape {name!r}; shapes are {', '.join(_SHAPES)}")
    implicit = _SHAPES[name](np.random.default_rng([seed, sorted(_SHAPES).index(name)]))
    vertices, faces = surface_nets(implicit, resolution)
    for _ in range(3):
        vertices = _project(implicit, vertices, _EXTENT / resolution)
    gradient = _gradient(implicit, vertices)
    normals = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-12)
    vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
    diameter = Mesh(vertices, faces, normals).diameter
    return Mesh(vertices / diameter, faces, normals)


def surface_nets(implicit: Implicit, resolution: int) -> tuple[Array, Array]:
    """Zero surface of `implicit` in a cube: vertices (V, 3) float64 and triangles (F, 3) int32.

    Naive surface nets (Gibson, MERL TR-99-24): one vertex per mixed cell at the mean of its edge crossings, one quad
    per grid edge that changes sign. The surface is closed when the border of the cube is outside.
    """
    axis = np.linspace(-_EXTENT, _EXTENT, resolution)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)  # (n, n, n, 3)
    values = _without_checkerboards(implicit(grid.reshape(-1, 3)).reshape(grid.shape[:3]))  # (n, n, n)
    inside = values < 0
    n = resolution - 1
    count = sum(inside[x : x + n, y : y + n, z : z + n].astype(np.int8) for x, y, z in _CORNERS)  # (n, n, n)
    cells = np.argwhere((count > 0) & (count < 8))  # (V, 3)
    index = np.full((n, n, n), -1, np.int32)
    index[tuple(cells.T)] = np.arange(len(cells), dtype=np.int32)
    vertices = axis[0] + (cells + _cell_offsets(values, cells)) * (axis[1] - axis[0])
    return vertices, np.concatenate([_quads(inside, index, k) for k in range(3)])


def _without_checkerboards(values: Array) -> Array:
    """Grid values (n, n, n) in which no square of four neighbours has its two diagonals on different sides.

    Across such a square four quads would meet in one edge. Its outer corner that is nearest to the surface is moved
    just inside, until there is none left; points only ever move inwards, so this ends.
    """
    values = values.copy()
    found = True
    while found:
        found = False
        for axis in range(3):
            v = np.moveaxis(values, axis, 2)  # a view: writing to it writes to `values`
            inside = v < 0
            a, b, c, d = inside[:-1, :-1], inside[1:, :-1], inside[:-1, 1:], inside[1:, 1:]
            for x, y, z in np.argwhere((a == d) & (b == c) & (a != b)):
                square = v[x : x + 2, y : y + 2, z]
                if np.sum(square < 0) == 2:
                    square[square == square[square >= 0].min()] = -1e-9
                    found = True
    return values


def _cell_offsets(values: Array, cells: Array) -> Array:
    """Mean of the edge crossings of each cell (V, 3), in units of the cell."""
    corner = np.stack([values[tuple((cells + c).T)] for c in _CORNERS], 1)  # (V, 8)
    total, number = np.zeros((len(cells), 3)), np.zeros((len(cells), 1))
    for a in range(8):
        for axis in range(3):
            if _CORNERS[a, axis]:
                continue
            b = a + (4, 2, 1)[axis]
            crosses = (corner[:, a] < 0) != (corner[:, b] < 0)
            fraction = corner[:, a] / np.where(crosses, corner[:, a] - corner[:, b], 1.0)  # (V,)
            point = _CORNERS[a] + fraction[:, None] * np.eye(3)[axis]
            total += np.where(crosses[:, None], point, 0.0)
            number += crosses[:, None]
    return total / number


def _quads(inside: Array, index: Array, axis: int) -> Array:
    """Two triangles for every grid edge along `axis` that changes sign, (F, 3) int32."""
    moved, index = np.moveaxis(inside, axis, 0), np.moveaxis(index, axis, 0)
    if axis == 1:  # keep the frame right-handed after moving the axis to the front
        moved, index = np.swapaxes(moved, 1, 2), np.swapaxes(index, 1, 2)
    low, high = moved[:-1, 1:-1, 1:-1], moved[1:, 1:-1, 1:-1]
    edges = np.argwhere(low != high)  # (E, 3)
    x, y, z = edges[:, 0], edges[:, 1], edges[:, 2]
    quad = np.stack([index[x, y, z], index[x, y + 1, z], index[x, y + 1, z + 1], index[x, y, z + 1]], 1)  # (E, 4)
    outward = low[x, y, z]  # inside below: the normal points along the axis
    quad = np.where(outward[:, None], quad, quad[:, ::-1])
    return np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]).astype(np.int32)


def _gradient(implicit: Implicit, points: Array, step: float = 1e-4) -> Array:
    """Central differences (P, 3)."""
    return np.stack([implicit(points + step * e) - implicit(points - step * e) for e in np.eye(3)], 1) / (2 * step)


def _project(implicit: Implicit, points: Array, max_step: float) -> Array:
    """One damped Newton step of points (P, 3) towards the zero surface."""
    gradient = _gradient(implicit, points)
    step = implicit(points)[:, None] * gradient / np.maximum((gradient**2).sum(1, keepdims=True), 1e-6)
    length = np.linalg.norm(step, axis=1, keepdims=True)
    return points - step * np.minimum(1.0, max_step / np.maximum(length, 1e-12))


def _smooth_union(a: Array, b: Array, radius: float) -> Array:
    """Polynomial smooth minimum of two fields (P,)."""
    h = np.clip(0.5 + 0.5 * (b - a) / radius, 0, 1)
    return b + (a - b) * h - radius * h * (1 - h)


def _ellipsoid(p: Array, centre: Array, axes: Array) -> Array:
    q = (p - centre) / axes
    length = np.linalg.norm(q, axis=1)
    return length * (length - 1) / np.maximum(np.linalg.norm(q / axes, axis=1), 1e-9)


def _capsule(p: Array, a: Array, b: Array, radius: float) -> Array:
    along = b - a
    t = np.clip((p - a) @ along / (along @ along), 0, 1)
    return np.linalg.norm(p - a - t[:, None] * along, axis=1) - radius


def _torus(p: Array, centre: Array, normal_axis: int, major: float, minor: float) -> Array:
    q = p - centre
    across = np.delete(q, normal_axis, axis=1)
    return np.hypot(np.linalg.norm(across, axis=1) - major, q[:, normal_axis]) - minor


def _box(p: Array, half: Array, rounding: float) -> Array:
    q = np.abs(p) - (half - rounding)
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0) - rounding


def _bumps(p: Array, centres: Array, heights: Array, widths: Array) -> Array:
    """Sum of Gaussian bumps in space, (P,)."""
    result = np.zeros(len(p))
    for centre, height, width in zip(centres, heights, widths, strict=True):
        result += height * np.exp(-((p - centre) ** 2).sum(1) / (2 * width**2))
    return result


def _directions(rng: np.random.Generator, number: int) -> Array:
    d = rng.normal(size=(number, 3))
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def _blob(rng: np.random.Generator) -> Implicit:
    """A lumpy star-shaped body."""
    axes = rng.uniform(0.30, 0.38, 3)
    centres = _directions(rng, 14) * axes
    heights, widths = rng.uniform(0.03, 0.09, 14) * rng.choice([1, 1, -0.7], 14), rng.uniform(0.06, 0.13, 14)
    return lambda p: _ellipsoid(p, np.zeros(3), axes) - _bumps(p, centres, heights, widths)


def _superquadric(rng: np.random.Generator) -> Implicit:
    """A box with rounded edges, a few dents and knobs."""
    half = np.array([0.30, 0.22, 0.25]) * rng.uniform(0.9, 1.1, 3)
    faces = rng.uniform(-0.8, 0.8, (6, 3))
    faces[np.arange(6), np.arange(6) % 3] = np.where(np.arange(6) < 3, 1.0, -1.0)
    heights, widths = rng.choice([0.05, -0.05, 0.035], 6), rng.uniform(0.05, 0.09, 6)
    return lambda p: _box(p, half, 0.05) - _bumps(p, faces * half, heights, widths)


def _elongated(rng: np.random.Generator) -> Implicit:
    """A long bent body with rings of bumps, lying down."""
    bend, thick = rng.uniform(0.5, 0.8), rng.uniform(0.12, 0.15)
    centres = np.stack([rng.uniform(-0.4, 0.4, 10), *(rng.normal(size=(2, 10)) * thick * 0.8)], 1)
    heights, widths = rng.uniform(0.02, 0.06, 10), rng.uniform(0.04, 0.08, 10)

    def implicit(p: Array) -> Array:
        q = np.stack([p[:, 0], p[:, 1], p[:, 2] + bend * p[:, 0] ** 2 - 0.08], 1)
        return 0.8 * _ellipsoid(q, np.zeros(3), np.array([0.52, thick, thick])) - _bumps(q, centres, heights, widths)

    return implicit


def _ring(rng: np.random.Generator) -> Implicit:
    """A body with a torus through it: has a hole one can look through."""
    major, minor = rng.uniform(0.25, 0.29), rng.uniform(0.06, 0.08)
    lift = rng.uniform(0.04, 0.1)
    body = np.array([0.2, 0.2, 0.2]) * rng.uniform(0.9, 1.1, 3)
    centres = np.array([0, 0, -0.22]) + _directions(rng, 8) * body
    heights, widths = rng.uniform(0.02, 0.06, 8), rng.uniform(0.04, 0.08, 8)

    def implicit(p: Array) -> Array:
        lower = _ellipsoid(p, np.array([0, 0, -0.22]), body) - _bumps(p, centres, heights, widths)
        return _smooth_union(lower, _torus(p, np.array([0, 0, lift + 0.05]), 1, major, minor), 0.05)

    return implicit


def _mug(rng: np.random.Generator) -> Implicit:
    """A hollow mug with a handle."""
    radius, height, wall = rng.uniform(0.26, 0.3), rng.uniform(0.30, 0.36), 0.035
    major = rng.uniform(0.13, 0.17)

    def cylinder(p: Array, r: float, low: float, high: float) -> Array:
        across = np.linalg.norm(p[:, :2], axis=1) - r * (1 + 0.12 * p[:, 2])
        along = np.abs(p[:, 2] - (low + high) / 2) - (high - low) / 2
        q = np.stack([across, along], 1) + 0.02
        return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0) - 0.02

    def implicit(p: Array) -> Array:
        outer = cylinder(p, radius, -height, height)
        handle = _torus(p, np.array([radius + 0.05, 0, 0]), 1, major, 0.035)
        hollow = cylinder(p, radius - wall, -height + 0.05, height + 0.3)
        return np.maximum(_smooth_union(outer, handle, 0.03), -hollow)

    return implicit


def _figure(rng: np.random.Generator) -> Implicit:
    """A body on thin legs with thin arms and a head: parts of a few hundredths of the diameter."""
    hips = np.array([[0.13, 0.1], [-0.13, 0.1], [0.13, -0.1], [-0.13, -0.1]]) * rng.uniform(0.9, 1.1, (4, 2))
    body = np.array([0.2, 0.14, 0.16]) * rng.uniform(0.9, 1.1, 3)
    head = np.array([0.22, 0.0, 0.26]) + rng.uniform(-0.03, 0.03, 3)
    tips = np.array([[-0.42, 0.06, 0.3], [0.05, 0.38, 0.22], [0.08, -0.38, 0.12]]) + rng.uniform(-0.05, 0.05, (3, 3))
    centres = _directions(rng, 8) * body
    heights, widths = rng.uniform(0.02, 0.05, 8), rng.uniform(0.04, 0.07, 8)

    def implicit(p: Array) -> Array:
        """Values (N,) at points (N, 3), negative inside."""
        value = _ellipsoid(p, np.zeros(3), body) - _bumps(p, centres, heights, widths)
        value = _smooth_union(value, _ellipsoid(p, head, np.array([0.12, 0.1, 0.1])), 0.06)
        value = _smooth_union(value, _capsule(p, np.zeros(3), head, 0.06), 0.04)
        for hip in hips:
            leg = _capsule(p, np.array([*hip, -0.05]), np.array([*(1.5 * hip), -0.42]), 0.032)
            value = _smooth_union(value, leg, 0.03)
        for tip in tips:
            value = _smooth_union(value, _capsule(p, np.zeros(3), tip, 0.026), 0.03)
        return value

    return implicit


_SHAPES: dict[str, Callable[[np.random.Generator], Implicit]] = {
    "blob": _blob,
    "box": _superquadric,
    "elongated": _elongated,
    "ring": _ring,
    "mug": _mug,
    "figure": _figure,
}
