"""Random solid objects as signed distance fields: a fixed number of slots, each one primitive with its own parameters.

Every object has the same slots, so that a batch of different objects is one tensor program: what differs between
objects are numbers and masks. Distances are lower bounds of the Euclidean distance (after division by the object's
Lipschitz constant), which is what sphere tracing needs (Hart, "Sphere tracing", The Visual Computer 1996).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_ga.synthetic.procedural.bundle import TensorBundle
from sparse_ga.synthetic.procedural.noise import fractal_noise

LINKS, BOXES, SUPERQUADRICS, PROFILES = 4, 2, 2, 2
SLOTS = LINKS + BOXES + SUPERQUADRICS + PROFILES
PROFILE_EDGES = 12
BOUND_RADIUS = 1.15
"""Everything outside this sphere is cut off."""
_FAR = 4.0
_fused_points = 0
_fused: Callable[[Objects, Tensor], Tensor] | None = None
# Order in which slots join the body: solids first, then what is stuck on or carved out.
_ORDER = (4, 6, 8, 0, 1, 5, 7, 9, 2, 3)


@dataclass(frozen=True, eq=False)
class Objects(TensorBundle):
    """B random objects. Slots 0-3 are links, 4-5 boxes, 6-7 superquadrics, 8-9 profiles (K = 10 in all).

    Lengths are in object units: an object fits in a sphere of radius 1.15 about its origin.
    """

    active: Tensor  # (B, K) bool
    carve: Tensor  # (B, K) bool: taken away instead of added
    blend: Tensor  # (B, K) radius of the smooth union
    fold: Tensor  # (B, K) int64: 0 single, 1 repeated about the z axis, 2 repeated along the x axis
    slot_from_object: Tensor  # (B, K, 3, 3) rotations
    centre: Tensor  # (B, K, 3)
    link: Tensor  # (B, 4, 3): half length, ring radius, tube radius (a capsule has ring radius 0)
    box: Tensor  # (B, 2, 5): half extents, rounding, wall thickness (0: solid)
    superquadric: Tensor  # (B, 2, 5): semi-axes, exponents p of the nested norms (xy, then z)
    profile_xy: Tensor  # (B, 2, E, 2) vertices of a simple polygon
    profile: Tensor  # (B, 2, 4): 1 if revolved else extruded, distance from the axis, half height, rounding
    polar_count: Tensor  # (B,) copies about the axis
    linear: Tensor  # (B, 2): spacing, copies on each side
    twist: Tensor  # (B,) radians per unit of z
    displacement: Tensor  # (B, 2): amplitude, frequency
    lipschitz: Tensor  # (B,) factor the raw field is divided by
    noise: Tensor  # (B, 4, 33, 33, 33)


def _norm(values: Tensor, exponent: Tensor) -> Tensor:
    """p-norm over axis 2 of `values` (B, K, n, P), p (B, K, 1), without overflow."""
    size = values.abs()
    peak = size.amax(2).clamp_min(1e-9)  # (B, K, P)
    return peak * (size / peak[:, :, None]).pow(exponent[:, :, None]).sum(2).pow(1 / exponent)


def _length(*parts: Tensor) -> Tensor:
    total = parts[0] * parts[0]
    for part in parts[1:]:
        total = total + part * part
    return total.sqrt()


def _links(p: Tensor, params: Tensor) -> Tensor:
    """Distance (B, K, P) to capsules, rings and chain links, of slot-frame points (B, K, 3, P)."""
    half, ring, tube = params[..., None].unbind(2)  # each (B, K, 1)
    x, y, z = p.unbind(2)
    y = (y.abs() - half).clamp_min(0)
    return _length(_length(x, y) - ring, z) - tube


def _boxes(p: Tensor, params: Tensor) -> Tensor:
    """Distance (B, K, P) to rounded boxes, hollow ones included."""
    rounding, wall = params[..., 3, None], params[..., 4, None]
    q = p.abs() - (params[..., :3, None] - rounding[:, :, None])  # (B, K, 3, P)
    outside = q.clamp_min(0)
    d = _length(*outside.unbind(2)) + q.amax(2).clamp_max(0) - rounding
    return torch.where(wall > 0, d.abs() - wall, d)


def _superquadrics(p: Tensor, params: Tensor) -> Tensor:
    """Lower bound (B, K, P) of the distance to convex superquadrics.

    The gauge of a convex body has the Lipschitz constant 1 / inradius; with exponents of at least 2 the body holds the
    ellipsoid of its semi-axes, below 2 still the one shrunk by 3 ** -0.5.
    """
    semi, exponents = params[..., :3, None], params[..., 3:]
    q = p / semi
    xy = _norm(q[:, :, :2], exponents[..., :1])
    gauge = _norm(torch.stack([xy, q[:, :, 2]], 2), exponents[..., 1:])
    inradius = params[..., :3].amin(-1) * torch.where(exponents.amin(-1) < 2, 3**-0.5, 1.0)
    return (gauge - 1) * inradius[..., None]


def _polygon(x: Tensor, y: Tensor, vertices: Tensor) -> Tensor:
    """Signed distance (B, K, P) in the plane to simple polygons (B, K, E, 2): nearest edge, even-odd rule."""
    nearest = torch.full_like(x, torch.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for a, b in zip(vertices.unbind(2), vertices.roll(-1, 2).unbind(2)):
        ax, ay, ex, ey = a[..., :1], a[..., 1:], (b - a)[..., :1], (b - a)[..., 1:]  # each (B, K, 1)
        wx, wy = x - ax, y - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey).clamp_min(1e-12)).clamp(0, 1)
        nearest = torch.minimum(nearest, (wx - along * ex) ** 2 + (wy - along * ey) ** 2)
        crosses = (wy < 0) != (wy < ey)
        inside = inside ^ (crosses & ((wx * ey < wy * ex) == (ey > 0)))
    return torch.where(inside, -1.0, 1.0) * nearest.sqrt()


def _profiles(p: Tensor, vertices: Tensor, params: Tensor) -> Tensor:
    """Distance bound (B, K, P) to polygons revolved about the slot's z axis or extruded along it."""
    revolved, offset, half, rounding = params[..., None].unbind(2)
    x, y, z = p.unbind(2)
    lathe = revolved > 0.5
    flat = _polygon(torch.where(lathe, _length(x, y) - offset, x), torch.where(lathe, z, y), vertices)
    cap = z.abs() - half
    solid = torch.maximum(flat, cap).clamp_max(0) + _length(flat.clamp_min(0), cap.clamp_min(0))
    return torch.where(lathe, flat, solid) - rounding


def _folds(objects: Objects, points: Tensor) -> Tensor:
    """Points (B, 3 variants, 3, P): as they are, folded about the z axis, folded along the x axis.

    Folding is by reflection, so the map never lengthens a distance and the field stays a lower bound.
    """
    x, y, z = points.unbind(1)
    sector = 2 * torch.pi / objects.polar_count[:, None]
    angle = torch.atan2(y, x)
    angle = (angle - sector * (angle / sector).round()).abs()
    radius = _length(x, y)
    polar = torch.stack([radius * angle.cos(), radius * angle.sin(), z], 1)
    spacing, copies = objects.linear[:, :1], objects.linear[:, 1:]
    cell = (x / spacing).round()
    cell = torch.minimum(torch.maximum(cell, -copies), copies)
    linear = torch.stack([(x - spacing * cell).abs(), y, z], 1)
    return torch.stack([points, polar, linear], 1)


def slot_distances(objects: Objects, points: Tensor) -> Tensor:
    """Distance (B, K, P) of `points` (B, 3, P) to each slot's primitive; far where a slot is not in use."""
    angle = objects.twist[:, None] * points[:, 2]
    cosine, sine = angle.cos(), angle.sin()
    x, y = cosine * points[:, 0] - sine * points[:, 1], sine * points[:, 0] + cosine * points[:, 1]
    folded = _folds(objects, torch.stack([x, y, points[:, 2]], 1))  # (B, 3, 3, P)
    rows = objects.fold[..., None, None].expand(-1, -1, 3, folded.shape[-1])
    local = folded.gather(1, rows) - objects.centre[..., None]
    local = objects.slot_from_object @ local  # (B, K, 3, P)
    parts = local.split((LINKS, BOXES, SUPERQUADRICS, PROFILES), 1)
    distances = [
        _links(parts[0], objects.link),
        _boxes(parts[1], objects.box),
        _superquadrics(parts[2], objects.superquadric),
        _profiles(parts[3], objects.profile_xy, objects.profile),
    ]
    return torch.where(objects.active[..., None], torch.cat(distances, 1), _FAR)


def _smooth_minimum(a: Tensor, b: Tensor, radius: Tensor) -> Tensor:
    """Polynomial smooth minimum: equal to the minimum where |a - b| > radius."""
    h = (0.5 + 0.5 * (b - a) / radius).clamp(0, 1)
    return b + (a - b) * h - radius * h * (1 - h)


def signed_distance(objects: Objects, points: Tensor) -> Tensor:
    """Lower bound (B, P) of the signed distance of `points` (B, 3, P), object frame; negative inside."""
    if _fused is None:
        return _signed_distance(objects, points)
    # Points go through in parts of one size, the last one filled up: each shape would be compiled anew.
    batch, count = len(points), points.shape[2]
    size = max(1, _fused_points // batch)
    parts = torch.nn.functional.pad(points, (0, -count % size)).split(size, 2)
    return torch.cat([_fused(objects, part.contiguous()).clone() for part in parts], 1)[:, :count]


def fuse_distances(points: int) -> None:
    """From now on evaluate distances in fused kernels (torch.compile), many times faster on a GPU; 0: no longer so.

    They take `points` of all objects together at once, are compiled at the first use, which takes half a minute or
    more, and again for every other number of objects B.
    """
    global _fused, _fused_points
    _fused_points, _fused = points, torch.compile(_signed_distance, dynamic=False) if points > 0 else None


def _signed_distance(objects: Objects, points: Tensor) -> Tensor:
    slots = slot_distances(objects, points)
    body = torch.full_like(slots[:, 0], _FAR)
    for k in _ORDER:
        sign = torch.where(objects.carve[:, k], -1.0, 1.0)[:, None]
        joined = sign * _smooth_minimum(sign * body, slots[:, k], objects.blend[:, k, None])
        body = torch.where(objects.active[:, k, None], joined, body)
    amplitude, frequency = objects.displacement[:, :1], objects.displacement[:, 1:]
    bumps = fractal_noise(objects.noise[:, :1], points * frequency[:, None], 2)[:, 0]
    body = (body + amplitude * bumps) / objects.lipschitz[:, None]
    return torch.maximum(body, _length(*points.unbind(1)) - BOUND_RADIUS)


def normals(objects: Objects, points: Tensor, step: float = 1e-3) -> Tensor:
    """Outward unit normals (B, 3, P) by differences at the four corners of a small tetrahedron."""
    corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])  # (4, 3)
    spread = points[:, :, None] + step * corners.T[None, :, :, None]  # (B, 3, 4, P)
    values = signed_distance(objects, spread.flatten(2)).unflatten(1, (4, -1))  # (B, 4, P)
    return torch.nn.functional.normalize(corners.T @ values, dim=1)
