"""Triangle meshes of distance fields: surface nets (Gibson, MICCAI 1998), vertices moved onto the surface."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_ga.synthetic.procedural.sampling import lattice
from sparse_ga.synthetic.procedural.shapes import BOUND_RADIUS, Objects, normals, signed_distance

_EXTENT = BOUND_RADIUS + 0.05
_SLICE = 1 << 18


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles of one object, object units."""

    vertices: Tensor  # (N, 3)
    triangles: Tensor  # (T, 3) int64


def _evaluate(objects: Objects, points: Tensor) -> Tensor:
    """Distances (P,) of one object at points (3, P), in slices."""
    return torch.cat([signed_distance(objects, part[None])[0] for part in points.split(_SLICE, 1)])


def _cell_vertices(values: Tensor) -> tuple[Tensor, Tensor]:
    """For every cell of a grid `values` (n, n, n): whether the surface crosses it, and the mean crossing of its edges.

    Positions (n - 1, n - 1, n - 1, 3) are in grid units along the axes of `values`.
    """
    corners = torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    count = len(values) - 1
    stacked = torch.stack([values[i : i + count, j : j + count, k : k + count] for i, j, k in corners.tolist()])
    total = values.new_zeros(count, count, count, 3)
    crossings = values.new_zeros(count, count, count)
    for a in range(8):
        for b in range(a + 1, 8):
            if int((corners[a] - corners[b]).abs().sum()) != 1:
                continue
            va, vb = stacked[a], stacked[b]
            crosses = (va < 0) != (vb < 0)
            part = torch.where(crosses, va / torch.where(crosses, va - vb, 1.0), 0.0)
            at = corners[a] + part[..., None] * (corners[b] - corners[a])
            total = total + torch.where(crosses[..., None], at, 0.0)
            crossings = crossings + crosses
    axis = torch.arange(count)
    base = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    return crossings > 0, base + total / crossings.clamp_min(1)[..., None]


def _quads(values: Tensor, number: Tensor) -> Tensor:
    """Triangles (T, 3) that join the cells around every edge the surface crosses; `number` is -1 on empty cells."""
    triangles = []
    for axis in range(3):
        turned = values.movedim(axis, 0)
        cells = number.movedim(axis, 0)
        low, high = turned[:-1, 1:-1, 1:-1] < 0, turned[1:, 1:-1, 1:-1] < 0
        around = [cells[:, :-1, :-1], cells[:, 1:, :-1], cells[:, 1:, 1:], cells[:, :-1, 1:]]
        crossed = low != high
        a, b, c, d = (corner[crossed] for corner in around)
        # Moving one axis to the front keeps orientation for axes 0 and 2 only.
        flip = (~low[crossed]) ^ (axis == 1)
        b, d = torch.where(flip, d, b), torch.where(flip, b, d)
        triangles += [torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)]
    return torch.cat(triangles)


def extract_mesh(objects: Objects, resolution: int = 128, newton_steps: int = 6) -> Mesh:
    """Mesh of the single object in `objects` (B = 1), faces outwards; parts thinner than a grid cell may be missing."""
    values = _evaluate(objects, lattice(resolution, _EXTENT)).reshape(resolution, resolution, resolution)
    occupied, position = _cell_vertices(values)  # axes (z, y, x)
    number = torch.full(occupied.shape, -1, dtype=torch.int64)
    number[occupied] = torch.arange(int(occupied.sum()))
    points = (position[occupied].flip(1) * (2 * _EXTENT / (resolution - 1)) - _EXTENT).T  # (3, N)
    cell = 2 * _EXTENT / (resolution - 1)
    for _ in range(newton_steps):
        direction = torch.cat([normals(objects, part[None])[0] for part in points.split(_SLICE, 1)], 1)
        value = _evaluate(objects, points)
        ahead = _evaluate(objects, points + 1e-3 * direction)
        slope = ((ahead - value) / 1e-3).clamp(0.2, 1.0)
        points = points - (value / slope).clamp(-0.5 * cell, 0.5 * cell) * direction
    return Mesh(points.T.contiguous(), _quads(values, number).flip(1))
