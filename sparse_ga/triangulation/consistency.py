"""Depth consistency across views: which pixels other views confirm, and their depth averaged over those views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ga.geometry.cameras import rays
from sparse_ga.products import Array
from sparse_ga.triangulation.depth import DepthView

_NEIGHBOURS = 8
_MIN_ANGLE_DEG = 2.0
_MAX_ANGLE_DEG = 60.0
_LEAST_SLANT = 0.1


@dataclass(frozen=True, eq=False)
class Agreement:
    """What the neighbours say of the F valid pixels of a view, in row order."""

    depth: Array  # (F,) averaged over the views that agree
    agree: Array  # (F,) int64, other views whose depth agrees
    conflict: Array  # (F,) int64, other views that see through the point


def neighbour_views(world_from_cam: Array, center: Array, usable: Array) -> list[Array]:
    """For each view up to 8 others that look at the object from 2 to 60 degrees aside, (N,) arrays of indices.

    Spread over the nearest 16, so that dense sequences do not only compare with their next frames. A view without any
    such neighbour gets the nearest ones whatever the angle.
    """
    direction = center - world_from_cam[:, :3, 3]
    direction = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
    angle = np.degrees(np.arccos(np.clip(direction @ direction.T, -1, 1)))  # (N, N)
    result = []
    for n in range(len(direction)):
        others = np.nonzero(usable & (np.arange(len(direction)) != n))[0]
        fit = others[(angle[n, others] >= _MIN_ANGLE_DEG) & (angle[n, others] <= _MAX_ANGLE_DEG)]
        pool = fit if len(fit) else others
        pool = pool[np.argsort(angle[n, pool], kind="stable")][: 2 * _NEIGHBOURS]
        pick = np.unique(np.linspace(0, len(pool) - 1, min(_NEIGHBOURS, len(pool))).round().astype(int))
        result.append(pool[pick] if len(pool) else pool)
    return result


def depth_normals(view: DepthView) -> Array:
    """Unit normals (F, 3) in the camera frame of the valid pixels, towards the camera, from central differences.

    A pixel without two valid neighbours on an axis takes the direction of its ray.
    """
    fx, fy = view.intrinsics[0, 0], view.intrinsics[1, 1]
    padded = np.pad(view.depth.astype(np.float64), 2)
    flat, width = padded.reshape(-1), padded.shape[1]
    row, column = np.nonzero(view.valid)
    at = (row + 2) * width + column + 2
    here = flat[at]
    ray = rays(view.intrinsics, view.pixels())
    slope_x, ok_x = _slope(flat[at + 2], here, flat[at - 2])
    slope_y, ok_y = _slope(flat[at + 2 * width], here, flat[at - 2 * width])
    # tangents: d(z ray)/dx = z_x ray + z e_x / f
    tangent_x = slope_x[:, None] * ray + here[:, None] * np.array([1 / fx, 0, 0])
    tangent_y = slope_y[:, None] * ray + here[:, None] * np.array([0, 1 / fy, 0])
    normal = np.where((ok_x & ok_y)[:, None], np.cross(tangent_y, tangent_x), -ray)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
    facing = (normal * ray).sum(1, keepdims=True) < 0
    return np.where(facing, normal, -normal)


def _slope(after: Array, here: Array, before: Array) -> tuple[Array, Array]:
    """Slope per pixel from neighbours two pixels away, one-sided where one is missing, and whether there is any."""
    has_after, has_before = after > 0, before > 0
    two = np.where(has_after, after, here) - np.where(has_before, before, here)
    steps = 2.0 * (has_after.astype(int) + has_before.astype(int))
    return two / np.maximum(steps, 1.0), steps > 0


def sample_depth(view: DepthView, xy: Array) -> Array:
    """Depth (P,) at pixels (P, 2): bilinear inside a smooth valid patch, nearest else; 0 where there is none."""
    height, width = view.depth.shape
    low = np.floor(xy)
    fraction = xy - low
    x0, y0 = low[:, 0].astype(np.int64), low[:, 1].astype(np.int64)
    patch = (x0 >= 0) & (y0 >= 0) & (x0 < width - 1) & (y0 < height - 1)
    base = np.where(patch, y0 * width + x0, 0)
    flat = view.depth.reshape(-1)
    corners = np.stack([flat[base], flat[base + 1], flat[base + width], flat[base + width + 1]])  # (4, P)
    smallest = corners.min(0)
    smooth = patch & (smallest > 0) & (corners.max(0) < 1.02 * smallest)
    top = corners[0] + (corners[1] - corners[0]) * fraction[:, 0]
    bottom = corners[2] + (corners[3] - corners[2]) * fraction[:, 0]
    column, row = np.rint(xy[:, 0]).astype(np.int64), np.rint(xy[:, 1]).astype(np.int64)
    inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    nearest = np.where(inside, flat[np.where(inside, row * width + column, 0)], 0.0)
    return np.where(smooth, top + (bottom - top) * fraction[:, 1], nearest)


def check_view(view: DepthView, others: list[DepthView], tolerance: float) -> Agreement:
    """Compare every valid pixel of `view` with the depth maps of `others`; `tolerance` in world units.

    What is compared is the distance along the pixel's normal, as if the other view's surface were a plane there: on a
    surface that a view sees at a grazing angle, depths along its rays differ by far more than the surfaces do. An
    agreeing view moves the point along its own ray onto that plane; the mean of these moves (and of none, for the view
    itself), weighted by confidence, is applied.
    """
    points = view.world_points()
    normal = depth_normals(view) @ view.world_from_cam[:3, :3].T  # (F, 3)
    ray = (points - view.world_from_cam[:3, 3]) / np.maximum(view.depth[view.valid], 1e-12)[:, None]  # per unit depth
    slant = np.minimum((normal * ray).sum(1), -_LEAST_SLANT)
    weight = view.confidence[view.valid].astype(np.float64) + 1e-3
    moved = np.zeros(len(points))
    agree, conflict = np.zeros(len(points), np.int64), np.zeros(len(points), np.int64)
    for other in others:
        gap, z, xy = _gap(points, other)
        known = np.isfinite(gap)
        other_slant = -np.abs((normal * (points - other.world_from_cam[:3, 3])).sum(1)) / z
        apart = gap * np.maximum(-other_slant, _LEAST_SLANT)  # along the normal, > 0 where the other sees through
        near = known & (np.abs(apart) < tolerance)
        move = gap * other_slant / slant
        trust = np.where(near & (np.abs(move) < 2 * tolerance), _confidence_at(other, xy) + 1e-3, 0.0)
        moved += trust * np.where(trust > 0, move, 0.0)
        weight += trust
        agree += near
        conflict += known & (apart > tolerance)
    return Agreement(view.depth[view.valid] + moved / weight, agree, conflict)


def _gap(points: Array, other: DepthView) -> tuple[Array, Array, Array]:
    """How much deeper than points (P, 3) another view sees the surface (NaN: unknown), their depth there, pixels."""
    cam = points @ other.cam_from_world[:3, :3].T + other.cam_from_world[:3, 3]
    z = np.maximum(cam[:, 2], 1e-12)
    xy = cam[:, :2] / z[:, None] * np.diag(other.intrinsics)[:2] + other.intrinsics[:2, 2]
    xy = np.where((cam[:, 2] > 0)[:, None], np.clip(xy, -1e6, 1e6), -1e6)
    depth = sample_depth(other, xy)
    return np.where(depth > 0, depth - z, np.nan), z, xy


def _confidence_at(view: DepthView, xy: Array) -> Array:
    height, width = view.depth.shape
    column = np.clip(np.rint(xy[:, 0]), 0, width - 1).astype(np.int64)
    row = np.clip(np.rint(xy[:, 1]), 0, height - 1).astype(np.int64)
    return view.confidence[row, column].astype(np.float64)
