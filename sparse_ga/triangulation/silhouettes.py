"""Silhouette consistency: points against every mask, and the visual hull of all masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import label

from sparse_ga.geometry.cameras import rays
from sparse_ga.products import Array
from sparse_ga.triangulation.views import Rig

_VOTE_CELLS = 48
_COARSE_CELLS = 48
_HULL_CELLS = 96


@dataclass(frozen=True, eq=False)
class Hull:
    """Cubic cells that every silhouette holds."""

    origin: Array  # (3,) world, centre of cell 0
    cell: float  # side of a cell, world units
    inside: Array  # (G, G, G) bool

    def centers(self, chosen: Array) -> Array:
        """Centres (C, 3) of the `chosen` (G, G, G) cells, in row order."""
        return self.origin + np.argwhere(chosen) * self.cell


@dataclass(frozen=True, eq=False)
class HullVotes:
    """How the views vote on cubic cells around the object."""

    origin: Array  # (3,) world, centre of cell 0
    cell: float  # side of a cell, world units
    outside: Array  # (G, G, G) int64, views that see the cell outside their mask
    seen: Array  # (G, G, G) int64, views that see the cell at all

    def hull(self, inside: Array) -> Hull:
        """The cells `inside` (G, G, G) as a hull."""
        return Hull(self.origin, self.cell, inside)


def distance_outside(mask: Array) -> Array:
    """Distance (H, W) float32 in px of every pixel to the mask; 0 inside. Without any mask pixel: large everywhere."""
    if not mask.any():
        return np.full(mask.shape, 1e6, np.float32)
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def project_nearest(rig: Rig, view: int, points: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Row-major index (P,) of the pixel that points (P, 3) fall on in a view, and whether it is in the image (P,)."""
    projection = rig.projection[view]
    x, y, z = (points @ projection[k, :3] + projection[k, 3] for k in range(3))
    front = z > 1e-9
    scale = 1 / np.where(front, z, 1.0)
    x, y = x * scale + 0.5, y * scale + 0.5
    inside = front & (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
    pixel = np.zeros(len(points), np.int64)
    pixel[inside] = y[inside].astype(np.int64) * shape[1] + x[inside].astype(np.int64)
    return pixel, inside


def seen_outside(rig: Rig, view: int, mask: Array, points: Array, limit_px: float) -> Array:
    """Points (P,) bool that a view sees more than `limit_px` outside its mask."""
    pixel, inside = project_nearest(rig, view, points, mask.shape)
    return inside & (distance_outside(mask).reshape(-1)[pixel] > limit_px)


def outside_votes(rig: Rig, masks: list[Array], points: Array, limit_px: float) -> Array:
    """How many registered views see each point (P,) more than `limit_px` outside their mask."""
    votes = np.zeros(len(points), np.int64)
    for view in np.nonzero(rig.registered)[0]:
        votes += seen_outside(rig, int(view), masks[view], points, limit_px)
    return votes


def _grid(low: Array, high: Array, cells: int) -> tuple[Array, float]:
    """Centre (3,) of the first cell and side of the cells of a cube around the box `low`..`high` (3,)."""
    cell = float((high - low).max()) / cells
    return (low + high) / 2 - (cells - 1) / 2 * cell, cell


def vote_cells(rig: Rig, masks: list[Array], low: Array, high: Array, cells: int = _VOTE_CELLS) -> HullVotes:
    """Votes of all registered views on a cubic grid that covers the box `low`..`high` (3,)."""
    origin, cell = _grid(low, high, cells)
    shape = (cells,) * 3
    centers = Hull(origin, cell, np.ones(shape, bool)).centers(np.ones(shape, bool))
    outside, seen = np.zeros(len(centers), np.int64), np.zeros(len(centers), np.int64)
    for view in np.nonzero(rig.registered)[0]:
        pixel, inside = project_nearest(rig, int(view), centers, masks[view].shape)
        seen += inside
        outside += inside & ~masks[view].reshape(-1)[pixel]
    return HullVotes(origin, cell, outside.reshape(shape), seen.reshape(shape))


def visual_hull(rig: Rig, masks: list[Array], low: Array, high: Array, cells: int = _HULL_CELLS) -> Hull:
    """Cells of a cubic grid over the box `low`..`high` (3,) that no mask excludes and at least two views see."""
    origin, cell = _grid(low, high, cells)
    index = np.arange(cells**3)
    seen = np.zeros(cells**3, np.int8)
    for view in np.nonzero(rig.registered)[0]:
        # only cells that all views so far keep: most go early
        corner = np.stack(np.unravel_index(index, (cells,) * 3), 1)
        pixel, visible = project_nearest(rig, int(view), origin + corner * cell, masks[view].shape)
        seen[index[visible]] = np.minimum(seen[index[visible]] + 1, 2)
        index = index[~visible | masks[view].reshape(-1)[pixel]]
    inside = np.zeros(cells**3, bool)
    inside[index[seen[index] >= 2]] = True
    return Hull(origin, cell, inside.reshape((cells,) * 3))


def carve(rig: Rig, masks: list[Array], points: Array) -> Hull:
    """The visual hull around points (P, 3), on a grid that fits it tightly.

    Found from a coarse grid three times as wide as the points. Where views see the object only in part, cones of masks
    also meet elsewhere; only the parts of the hull that hold points are kept.
    """
    low, high = box_around(points)
    middle, half = (low + high) / 2, 1.5 * float((high - low).max())
    coarse = _around(visual_hull(rig, masks, middle - half, middle + half, _COARSE_CELLS), points)
    kept = coarse.centers(coarse.inside)
    if len(kept) == 0:
        return visual_hull(rig, masks, low, high)
    # a coarse cell may hold hull although its centre does not
    margin = 1.5 * coarse.cell
    return _around(visual_hull(rig, masks, kept.min(0) - margin, kept.max(0) + margin), points)


def _around(hull: Hull, points: Array) -> Hull:
    """The connected parts of a hull with points (P, 3) in them; all of it when no point is inside."""
    cell = np.floor((points - hull.origin) / hull.cell + 0.5).astype(np.int64)
    cell = cell[((cell >= 0) & (cell < len(hull.inside))).all(1)]
    part, _ = label(hull.inside)
    wanted = np.unique(part[tuple(cell.T)])
    wanted = wanted[wanted > 0]
    return Hull(hull.origin, hull.cell, np.isin(part, wanted)) if len(wanted) else hull


def hull_front(rig: Rig, view: int, hull: Hull, xy: Array) -> Array:
    """Depth (P,) at which the rays through pixels (P, 2) of a view enter the hull; 0 where they miss it.

    Marches all rays together in steps of half a cell; right to within half a cell.
    """
    inside, side = hull.inside.reshape(-1), len(hull.inside)
    ray = rays(rig.intrinsics[view], xy) @ rig.world_from_cam[view, :3, :3].T  # (P, 3), per unit depth
    low = hull.origin - hull.cell / 2
    start = rig.centers[view] - low
    with np.errstate(divide="ignore", invalid="ignore"):
        planes = np.stack([-start / ray, (side * hull.cell - start) / ray])  # (2, P, 3)
    near = np.nan_to_num(planes.min(0), nan=0.0).max(1).clip(0)
    far = np.nan_to_num(planes.max(0), nan=np.inf).min(1)
    step = hull.cell / 2 / np.linalg.norm(ray, axis=1)
    front = np.zeros(len(xy))
    for number in range(4 * side):
        depth = near + (number + 0.5) * step
        active = (front == 0) & (depth < far)
        if not active.any():
            break
        index = np.floor((start + depth[active, None] * ray[active]) / hull.cell).astype(np.int64).clip(0, side - 1)
        hit = inside[(index[:, 0] * side + index[:, 1]) * side + index[:, 2]]
        front[np.nonzero(active)[0][hit]] = depth[active][hit]
    # the first centre inside lies a quarter step to a cell behind the surface: half a cell on average
    return np.where(front > 0, np.maximum(front - step, 1e-12), 0.0)


def hull_silhouette(rig: Rig, view: int, hull: Hull, shape: tuple[int, int]) -> Array:
    """Where the hull projects in a view, (H, W) bool, grown to cover whole cells."""
    centers = hull.centers(hull.inside)
    pixel, inside = project_nearest(rig, view, centers, shape)
    if not inside.any():
        return np.zeros(shape, bool)
    picture = np.zeros(shape[0] * shape[1], bool)
    picture[pixel[inside]] = True
    depth = (centers[inside] - rig.centers[view]) @ rig.world_from_cam[view, :3, 2]
    reach = np.ceil(rig.intrinsics[view, 0, 0] * hull.cell / float(np.median(depth))) + 1
    return distance_outside(picture.reshape(shape)) <= reach


def box_around(points: Array) -> tuple[Array, Array]:
    """A box (3,), (3,) that holds the points with a margin of a tenth; outliers do not stretch it much."""
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    margin = 0.1 * max(float((high - low).max()), 1e-12)
    return low - margin, high + margin
