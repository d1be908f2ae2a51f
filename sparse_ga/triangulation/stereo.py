"""Photometric refinement of depth maps: a sweep of offsets from the depth at hand, scored by masked correlation.

Each hypothesis shifts the whole depth map of a view along its rays by one offset and warps its neighbours' images
through it, so windows follow the surface instead of a plane facing the camera (compare Gallup et al., CVPR 2007).
Semi-global matching (Hirschmueller, PAMI 2008) picks the offsets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np

from sparse_ga.products import Array
from sparse_ga.triangulation.correlation import Crop, Picture, Surroundings, crop_of, over_all_views, score
from sparse_ga.triangulation.depth import DepthView

_SMALL = 0.15
_LARGE = 0.6
_PRIOR = 0.05
_MOST_NEIGHBOURS = 6
_SMOOTH_RANGE = 0.005  # share of the diameter


@dataclass(frozen=True)
class Sweep:
    """One sweep over offsets from the current depth."""

    reach: float  # largest offset, share of the object's diameter
    steps: int  # offsets on either side
    window_px: int  # side of the correlation window, odd
    halved: bool  # at half the working resolution


SWEEPS = (Sweep(0.06, 10, 7, True), Sweep(0.015, 6, 7, False))


def refine_depths(
    depths: list[DepthView], images: list[Array], neighbours: list[Array], diameter: float
) -> list[DepthView]:
    """Depth maps after all `SWEEPS`, each over all views before the next.

    `images` are (H, W, 3) uint8 by view index, `neighbours` view indices by view index. Pixels without texture follow
    their surroundings and the depth they had; confidence becomes the correlation reached there.
    """
    around = Surroundings(images, neighbours)
    for sweep in SWEEPS:
        smooth = [replace(view, depth=smooth_depth(view.depth, _SMOOTH_RANGE * diameter)) for view in depths]
        work = partial(sweep_view, sweep=sweep, diameter=diameter)
        depths = over_all_views(work, smooth, around, _MOST_NEIGHBOURS, sweep.halved)
    return depths


def sweep_view(view: DepthView, picture: Picture, others: list[Picture], sweep: Sweep, diameter: float) -> DepthView:
    """One view after one sweep; as it was when it has no depth or no neighbours."""
    if not others or not picture.view.valid.any():
        return view
    crop = crop_of(picture, sweep.window_px)
    offsets = np.linspace(-sweep.reach, sweep.reach, 2 * sweep.steps + 1).astype(np.float32) * diameter
    scores = np.stack([score(crop, crop.depth + offset, picture.view, others) for offset in offsets])
    best, correlation = _choose(scores, crop)
    shape = picture.view.depth.shape
    offset_map, score_map = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    offset_map[crop.rows, crop.columns] = np.interp(best, np.arange(len(offsets)), offsets)
    score_map[crop.rows, crop.columns] = np.clip(correlation, 0.05, 1)
    if sweep.halved:
        weight = (picture.view.depth > 0).astype(np.float32)
        offset_map, score_map = (_doubled(values, weight, view.depth.shape) for values in (offset_map, score_map))
    depth = np.where(view.valid, np.maximum(view.depth + offset_map, 1e-6), 0)
    confidence = np.where(view.valid, np.clip(score_map, 0.05, 1), 0)
    return replace(view, depth=depth.astype(np.float32), confidence=confidence.astype(np.float32))


def _doubled(values: Array, weight: Array, shape: tuple[int, int]) -> Array:
    """Values (h, w) where `weight` is set, at twice the resolution (H, W); 0 far from any."""
    x = ((np.arange(shape[1]) - 0.5) / 2).astype(np.float32)
    y = ((np.arange(shape[0]) - 0.5) / 2).astype(np.float32)
    map_x, map_y = np.meshgrid(x, y)
    top, bottom = (
        cv2.remap(layer, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for layer in (values * weight, weight)
    )
    return np.where(bottom > 1e-3, top / np.maximum(bottom, 1e-3), 0)


def smooth_depth(depth: Array, reach: float) -> Array:
    """Depth (H, W) float32 without specks and block edges: a median over 5 px, then a bilateral mean over 9 px.

    Depths that differ by much more than `reach` do not mix, nor does the background.
    """
    valid = depth > 0
    # the median of a window that leaves the object must not see the zeros there
    _, label = cv2.distanceTransformWithLabels(
        (~valid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(label.max()) + 1, np.float32)
    of_label[label[valid]] = depth[valid]
    filled = cv2.medianBlur(of_label[label], 5)
    mixed = cv2.bilateralFilter(np.where(valid, filled, 0), 9, reach, 2.5)
    return np.where(valid, mixed, 0).astype(np.float32)


def _choose(scores: Array, crop: Crop) -> tuple[Array, Array]:
    """Best offset (h, w) as a fractional index, and the correlation (h, w) there."""
    count = len(scores)
    off_centre = np.abs(np.arange(count) - count // 2) / max(count // 2, 1)
    cost = (1 - scores) + (_PRIOR * off_centre).astype(np.float32)[:, None, None]
    cost = np.where(crop.weight > 0, cost, 0).astype(np.float32)
    total = semi_global(cost)
    index = total.argmin(0)
    inner = np.clip(index, 1, count - 2)
    below, here, above = (np.take_along_axis(total, (inner + step)[None], 0)[0] for step in (-1, 0, 1))
    curvature = below - 2 * here + above
    shift = np.where(curvature > 1e-6, (below - above) / (2 * np.maximum(curvature, 1e-6)), 0)
    best = np.where(index == inner, inner + np.clip(shift, -0.5, 0.5), index)
    return best, np.take_along_axis(scores, index[None], 0)[0]


def semi_global(cost: Array) -> Array:
    """Sum (K, h, w) of the costs of the cheapest paths from four sides; small steps cost little, larger ones more."""
    total = np.zeros_like(cost)
    for axis in (1, 2):
        for backwards in (False, True):
            lines = np.moveaxis(cost, axis, 0)  # (n, K, m)
            out = np.moveaxis(total, axis, 0)
            order = range(len(lines) - 1, -1, -1) if backwards else range(len(lines))
            previous: Array | None = None
            for number in order:
                previous = lines[number] if previous is None else lines[number] + _step(previous)
                out[number] += previous
    return total


def _step(previous: Array) -> Array:
    """Cheapest way (K, m) to arrive from the line before, less the cheapest of all so that sums stay bounded."""
    lowest = previous.min(0)
    best = np.minimum(previous, lowest + _LARGE)
    best[1:] = np.minimum(best[1:], previous[:-1] + _SMALL)
    best[:-1] = np.minimum(best[:-1], previous[1:] + _SMALL)
    return best - lowest
