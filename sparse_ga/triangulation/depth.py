"""Per-view depth maps from refined anchors, corrected smoothly towards triangulated tracks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.sparse import coo_matrix, csc_matrix, diags
from scipy.sparse.linalg import spsolve

from sparse_ga.geometry.cameras import rays
from sparse_ga.products import Array, CanonicalView
from sparse_ga.triangulation.silhouettes import Hull, hull_front
from sparse_ga.triangulation.tracks import TriangulatedTracks
from sparse_ga.triangulation.views import Rig

FEWEST_SAMPLES = 3
"""Fewer known depths do not tell the scale of a depth map."""
_CELL_PX = 8
_SLOPE = 0.004
_ANCHOR = 1.0
_TRACK_NOISE_PX = 0.7
_MIN_SIGMA = 1e-3
_RIM_PX = (1.5, 4.0)
_RIM_STEP = 5
_RIM_SIGMA = 0.015
_ROBUST_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class DepthView:
    """One view's depth of the object, working px, with the camera it belongs to."""

    index: int
    depth: Array  # (H, W) float32, 0 where there is none
    confidence: Array  # (H, W) float32 in [0, 1]
    mask: Array  # (H, W) bool
    intrinsics: Array  # (3, 3)
    world_from_cam: Array  # (4, 4)

    @property
    def valid(self) -> Array:
        """Pixels with a depth, (H, W) bool."""
        return self.depth > 0

    @property
    def cam_from_world(self) -> Array:
        """(4, 4)."""
        return np.linalg.inv(self.world_from_cam)

    def without_depth(self) -> DepthView:
        """The same view, of which no depth is known."""
        nothing = np.zeros_like(self.depth)
        return replace(self, depth=nothing, confidence=nothing)

    def pixels(self) -> Array:
        """Centres (F, 2) float64 of the valid pixels, (x, y), in row order."""
        row, column = np.nonzero(self.valid)
        return np.stack([column, row], 1).astype(np.float64)

    def world_points(self) -> Array:
        """World points (F, 3) of the valid pixels, in row order."""
        cam = rays(self.intrinsics, self.pixels()) * self.depth[self.valid][:, None]
        return cam @ self.world_from_cam[:3, :3].T + self.world_from_cam[:3, 3]


def anchor_depth_map(canonical: CanonicalView, anchor_depth: Array) -> Array:
    """Depth (H, W) float64 of every foreground pixel from its anchor's depth (A,); 0 where there is no anchor."""
    foreground = canonical.anchor_of_pixel >= 0
    anchor = canonical.anchor_of_pixel[foreground]
    scale = anchor_depth / np.maximum(canonical.anchor_depth, 1e-12)  # (A,)
    depth = np.zeros(canonical.depth.shape)
    depth[foreground] = canonical.depth[foreground] * scale[anchor]
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0.0)


@dataclass(frozen=True, eq=False)
class DepthSamples:
    """Depths known at single pixels of a view."""

    xy: Array  # (K, 2) float64, working px
    depth: Array  # (K,) float64, world units
    sigma: Array  # (K,) relative standard deviation of the depth

    @property
    def pixel(self) -> tuple[Array, Array]:
        """Rows and columns (K,) int64 of the pixels they are at."""
        column, row = np.rint(self.xy).astype(np.int64).T
        return row, column

    def on(self, depth: Array) -> DepthSamples:
        """Those at a pixel where the map `depth` (H, W) has one."""
        row, column = self.pixel
        kept = (column >= 0) & (row >= 0) & (column < depth.shape[1]) & (row < depth.shape[0])
        kept[kept] &= depth[row[kept], column[kept]] > 0
        return DepthSamples(self.xy[kept], self.depth[kept], self.sigma[kept])

    @staticmethod
    def join(parts: list[DepthSamples]) -> DepthSamples:
        """All samples together."""
        return DepthSamples(
            np.concatenate([part.xy for part in parts]),
            np.concatenate([part.depth for part in parts]),
            np.concatenate([part.sigma for part in parts]),
        )


def track_depths(rig: Rig, tracks: TriangulatedTracks, view: int) -> DepthSamples:
    """What the tracks say of a view, at the pixels their points project to."""
    rows = np.nonzero(tracks.obs.view_index == view)[0]
    point = tracks.obs.point_index[rows]
    cam_from_world = rig.cam_from_world[view]
    cam = tracks.points[point] @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    axis = cam_from_world[2, :3]
    variance = np.einsum("i,kij,j->k", axis, tracks.covariance[point], axis)
    depth = cam[:, 2]
    front = depth > 0
    safe = np.where(front, depth, 1.0)
    sigma = _TRACK_NOISE_PX * np.sqrt(np.maximum(variance, 0)) / safe + _MIN_SIGMA
    xy = cam[:, :2] / safe[:, None] * np.diag(rig.intrinsics[view])[:2] + rig.intrinsics[view, :2, 2]
    return DepthSamples(xy[front], depth[front], sigma[front])


def rim_depths(rig: Rig, view: int, mask: Array, hull: Hull, diameter: float) -> DepthSamples:
    """Depths along the outline of the object: there the surface touches the visual hull.

    Taken a few pixels inside the outline, where the ray through the hull is no longer grazing; not at the image
    border, which cuts the object without being its outline.
    """
    padded = np.pad(mask, 1, mode="edge").astype(np.uint8)
    inside = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = np.nonzero((inside > _RIM_PX[0]) & (inside <= _RIM_PX[1]))
    xy = np.stack([column, row], 1)[::_RIM_STEP].astype(np.float64)
    front = hull_front(rig, view, hull, xy)
    hit = front > 0
    return DepthSamples(xy[hit], front[hit], _RIM_SIGMA * diameter / front[hit])


def correct_depth(depth: Array, samples: DepthSamples) -> Array:
    """Depth (H, W) multiplied by a smooth factor that brings it to the samples.

    The logarithm of the factor lives on cells of 8 px and minimises a robust data term plus a membrane energy: from
    one cell to the next the relative error of the depth map is expected to change by 0.4 %, and by any amount across
    steps of the depth. With fewer than `FEWEST_SAMPLES` samples on the depth it stays as it is.
    """
    usable = samples.on(depth)
    if len(usable.depth) < FEWEST_SAMPLES:
        return depth
    row, column = usable.pixel
    ratio = np.log(usable.depth / depth[row, column])  # (K,)
    grid = _cells(depth)
    cell = grid.number[row // _CELL_PX, column // _CELL_PX]
    correction = _solve_membrane(grid, cell, ratio, usable.sigma)
    return np.where(depth > 0, depth * np.exp(_upsample(grid, correction, depth.shape)), 0.0)


def behind_hull(depth: Array, rig: Rig, view: int, hull: Hull) -> Array:
    """Depth (H, W) pushed back to the visual hull's front where it lies before it; hull fronts on a grid of 2 px."""
    height, width = depth.shape
    column, row = np.meshgrid(np.arange(0, width, 2), np.arange(0, height, 2))
    wanted = cv2.dilate((depth > 0).astype(np.uint8), np.ones((3, 3), np.uint8))[::2, ::2] > 0
    front = np.zeros(column.shape)
    front[wanted] = hull_front(rig, view, hull, np.stack([column[wanted], row[wanted]], 1).astype(np.float64))
    nearest = np.repeat(np.repeat(front, 2, 0), 2, 1)[:height, :width]
    return np.where(depth > 0, np.maximum(depth, nearest), 0.0)


@dataclass(frozen=True, eq=False)
class _CellGrid:
    number: Array  # (h, w) int64, -1 where a cell has no valid pixel
    log_depth: Array  # (C,)


def _cells(depth: Array) -> _CellGrid:
    height, width = (-(-side // _CELL_PX) for side in depth.shape)
    padded = np.zeros((height * _CELL_PX, width * _CELL_PX))
    padded[: depth.shape[0], : depth.shape[1]] = depth
    blocks = padded.reshape(height, _CELL_PX, width, _CELL_PX)
    count = (blocks > 0).sum((1, 3))
    total = np.log(np.where(blocks > 0, blocks, 1.0)).sum((1, 3))
    number = np.full((height, width), -1, np.int64)
    number[count > 0] = np.arange((count > 0).sum())
    return _CellGrid(number, total[count > 0] / count[count > 0])


def _solve_membrane(grid: _CellGrid, cell: Array, ratio: Array, sigma: Array) -> Array:
    """Log correction (C,) of each cell; the data term is Cauchy's, in units of the samples' standard deviations."""
    count = len(grid.log_depth)
    stiffness = _laplacian(grid) / _SLOPE**2
    middle = float(np.median(ratio))
    correction = np.full(count, middle)
    for _ in range(_ROBUST_ROUNDS):
        residual = (ratio - correction[cell]) / sigma
        scale = 2 * max(1.4826 * float(np.median(np.abs(residual))), 1.0)
        weight = 1 / sigma**2 / (1 + (residual / scale) ** 2)
        data = np.bincount(cell, weight, minlength=count) + _ANCHOR
        right = np.bincount(cell, weight * ratio, minlength=count) + _ANCHOR * middle
        correction = np.asarray(spsolve(csc_matrix(stiffness + diags(data)), right))
    return correction


def _laplacian(grid: _CellGrid) -> csc_matrix:
    """Graph Laplacian (C, C) of neighbouring cells; links weaken where the depth steps."""
    a = np.concatenate([grid.number[:, :-1].ravel(), grid.number[:-1].ravel()])
    b = np.concatenate([grid.number[:, 1:].ravel(), grid.number[1:].ravel()])
    both = (a >= 0) & (b >= 0)
    a, b = a[both], b[both]
    count = len(grid.log_depth)
    if len(a) == 0:
        return csc_matrix((count, count))
    step = np.abs(grid.log_depth[a] - grid.log_depth[b])
    link = 1 / (1 + (step / max(4 * float(np.median(step)), 1e-9)) ** 2) + 1e-3
    off = coo_matrix((link, (a, b)), shape=(count, count))
    off = (off + off.T).tocsc()
    return csc_matrix(diags(np.asarray(off.sum(0)).ravel()) - off)


def _upsample(grid: _CellGrid, values: Array, shape: tuple[int, int]) -> Array:
    """Cell values (C,) as a smooth field (H, W), bilinear between cell centres of the foreground only."""
    weight = (grid.number >= 0).astype(np.float64)
    field = np.zeros(grid.number.shape)
    field[grid.number >= 0] = values
    x = ((np.arange(shape[1]) + 0.5) / _CELL_PX - 0.5).astype(np.float32)
    y = ((np.arange(shape[0]) + 0.5) / _CELL_PX - 0.5).astype(np.float32)
    map_x, map_y = np.meshgrid(x, y)
    options = {"interpolation": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
    top = cv2.remap(field * weight, map_x, map_y, **options)
    bottom = cv2.remap(weight, map_x, map_y, **options)
    return top / np.maximum(bottom, 1e-6)


def normalised_confidence(confidences: list[Array]) -> list[Array]:
    """Confidence maps of any scale as (H, W) float32 in [0, 1): c / (c + median over all foregrounds)."""
    positive = [c[c > 0] for c in confidences]
    values = np.concatenate(positive) if positive else np.zeros(0)
    middle = float(np.median(values)) if len(values) else 1.0
    return [(np.maximum(c, 0) / (np.maximum(c, 0) + max(middle, 1e-12))).astype(np.float32) for c in confidences]
