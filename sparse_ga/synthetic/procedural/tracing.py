"""Sphere tracing of batches of objects: a coarse distance grid takes the long steps, the exact field the last ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_ga.synthetic.procedural.bundle import TensorBundle, select
from sparse_ga.synthetic.procedural.noise import lookup_volume
from sparse_ga.synthetic.procedural.sampling import lattice
from sparse_ga.synthetic.procedural.shapes import BOUND_RADIUS, Objects, signed_distance

GRID_HALF_EXTENT = 1.25
HIT_DISTANCE = 4e-4
"""A ray that comes this close (object units) is a hit; it is polished to the surface afterwards."""
_SLICE = 1 << 19
_ROUNDS = 20


@dataclass(frozen=True, eq=False)
class DistanceGrid(TensorBundle):
    """Distances of B objects on a cube of n ** 3 points, [-1.25, 1.25] along each axis."""

    volume: Tensor  # (B, 1, n, n, n), axes z, y, x

    @property
    def slack(self) -> float:
        """How much a trilinear lookup may exceed the true 1-Lipschitz field: half a cell's diagonal."""
        return 2 * GRID_HALF_EXTENT / (self.volume.shape[-1] - 1) * 3**0.5 / 2

    def distance(self, points: Tensor) -> Tensor:
        """Interpolated distance (B, P) at (B, 3, P); outside the cube the border's value plus the way to it."""
        inside = points.clamp(-GRID_HALF_EXTENT, GRID_HALF_EXTENT)
        return lookup_volume(self.volume, inside, GRID_HALF_EXTENT)[:, 0] + (points - inside).square().sum(1).sqrt()


def build_grid(objects: Objects, resolution: int) -> DistanceGrid:
    """The distance grid of every object; evaluated in slices to bound memory."""
    batch = len(objects.centre)
    points = lattice(resolution, GRID_HALF_EXTENT, objects.centre.device)  # (3, n^3)
    step = max(1, _SLICE * 4 // batch)
    parts = [signed_distance(objects, part.expand(batch, -1, -1)) for part in points.split(step, 1)]
    return DistanceGrid(torch.cat(parts, 1).reshape(batch, 1, resolution, resolution, resolution))


def bounds(grid: DistanceGrid) -> tuple[Tensor, Tensor]:
    """Centre (B, 3) and radius (B,) of a sphere that holds each object, from the grid."""
    resolution = grid.volume.shape[-1]
    cell = 2 * GRID_HALF_EXTENT / (resolution - 1)
    points = lattice(resolution, GRID_HALF_EXTENT, grid.volume.device)  # (3, n^3)
    inside = grid.volume.flatten(1)[:, None] < cell / 2  # (B, 1, n^3)
    low = torch.where(inside, points, torch.inf).amin(2)
    high = torch.where(inside, points, -torch.inf).amax(2)
    centre = (low + high) / 2
    reach = (points[None] - centre[..., None]).square().sum(1).sqrt()
    return centre, torch.where(inside[:, 0], reach, 0.0).amax(1)


def _sphere_interval(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where unit rays (B, 3, R) enter and leave the bounding sphere, (B, R) each, and whether they do."""
    along = (origins * directions).sum(1)
    radius2 = (BOUND_RADIUS + 0.01) ** 2
    inside = along * along - origins.square().sum(1) + radius2
    half = inside.clamp_min(0).sqrt()
    return (-along - half).clamp_min(0), -along + half, (inside > 0) & (-along + half > 0)


def _march(objects: Objects, grid: DistanceGrid, rays: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds of grid steps and exact steps on rays (B, 6, M): distances (B, M) and hits (B, M).

    A ray that is still creeping along a surface after the last round counts as a hit if it is nearly there.
    """
    t, hit = start, torch.zeros_like(start, dtype=torch.bool)
    origins, directions = rays[:, :3], rays[:, 3:]
    alive = t < end
    for turn in range(_ROUNDS):
        threshold = HIT_DISTANCE if turn < _ROUNDS - 1 else 10 * HIT_DISTANCE
        chosen = select(alive & ~hit)
        if chosen.count == 0:
            break
        o, d, u, stop = (chosen.gather(v) for v in (origins, directions, t, end))
        for _ in range(5):
            u = u + (grid.distance(o + u[:, None] * d) - grid.slack).clamp_min(0)
        near = torch.zeros_like(u, dtype=torch.bool)
        close = select((u < stop) & chosen.valid & (grid.distance(o + u[:, None] * d) < 2.5 * grid.slack))
        if close.count:
            co, cd, cu, cn = (close.gather(v) for v in (o, d, u, near))
            for _ in range(4):
                value = signed_distance(objects, co + cu[:, None] * cd)
                cn = cn | (value < threshold)
                cu = torch.where(cn, cu, cu + value)
            u, near = close.scatter(u, cu), close.scatter(near, cn)
        t, hit = chosen.scatter(t, u), chosen.scatter(hit, near & (u < stop))
        alive = alive & (t < end)
    return t, hit


def _polish(objects: Objects, origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """Secant steps along hits (B, 3, M) from just before the surface, t (B, M), to the surface."""
    before, value_before = t - 2e-3, signed_distance(objects, origins + (t - 2e-3)[:, None] * directions)
    best, best_value = t, torch.full_like(t, torch.inf)
    for _ in range(5):
        value = signed_distance(objects, origins + t[:, None] * directions)
        better = value.abs() < best_value
        best, best_value = torch.where(better, t, best), torch.where(better, value.abs(), best_value)
        slope = (value - value_before) / torch.where((t - before).abs() < 1e-7, 1.0, t - before)
        step = torch.where(slope < -1e-3, -value / slope.clamp_max(-1e-3), value)
        before, value_before = t, value
        t = t + step.clamp(-5e-3, 5e-3)
    return best


def trace(objects: Objects, grid: DistanceGrid, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """First hits of unit rays (B, 3, R), object frame: distance along the ray (B, R) and whether there is one."""
    start, end, alive = _sphere_interval(origins, directions)
    distance, hit = torch.zeros_like(start), torch.zeros_like(alive)
    chosen = select(alive)
    if chosen.count == 0:
        return distance, hit
    rays = chosen.gather(torch.cat([origins, directions], 1))
    t, near = _march(objects, grid, rays, chosen.gather(start), chosen.gather(torch.where(alive, end, -1.0)))
    found = select(near & chosen.valid)
    if found.count:
        packed = found.gather(rays)
        t = found.scatter(t, _polish(objects, packed[:, :3], packed[:, 3:], found.gather(t)))
    return chosen.scatter(distance, t), chosen.scatter(hit, near)
